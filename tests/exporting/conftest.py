"""One small classifier that was exported for the session: an export takes seconds."""

from __future__ import annotations

import pytest

from tests.inference.conftest import colour_folder, loaded  # noqa: F401 -- fixtures
from vision_ssm.exporting import export


@pytest.fixture(scope="session")
def exported(loaded, tmp_path_factory):  # noqa: F811
    """The file of a classifier for any number of images of 8 x 8 pixels."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return export(loaded, tmp_path_factory.mktemp("exported") / "colours.onnx", dynamic=["batch"])
