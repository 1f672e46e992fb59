"""One small classifier that was exported for the session: an export takes seconds."""

from __future__ import annotations

import shutil

import pytest

from tests.inference.conftest import colour_folder, loaded  # noqa: F401 -- fixtures
from vision_ssm.exporting import export, onnx_files
from vision_ssm.exporting.lowering import Lowered


@pytest.fixture(scope="session")
def exported(loaded, graph):  # noqa: F811
    """The file of a classifier for any number of images of 8 x 8 pixels."""
    with pytest.MonkeyPatch.context() as patch:
        write = onnx_files.write

        def keep(path):
            shutil.copy(path, graph)
            return Lowered()

        patch.setattr(onnx_files, "write", lambda *given, lower, **how: write(*given, lower=keep, **how))
        return export(loaded, graph.with_name("colours.onnx"), dynamic=["batch"])


@pytest.fixture(scope="session")
def graph(tmp_path_factory):
    """Where `exported` leaves its graph as the exporter wrote it, before its precision is lowered."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return tmp_path_factory.mktemp("exported") / "graph.onnx"
