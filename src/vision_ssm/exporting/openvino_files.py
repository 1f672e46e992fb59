"""A model as OpenVINO's pair of files, NAME.xml with NAME.bin beside it, by way of ONNX."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vision_ssm.errors import CheckpointError
from vision_ssm.exporting import onnx_files
from vision_ssm.exporting.lowering import Lower, Written
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.runtimes import first_line, needed

__all__ = ["describe", "write"]


def write(
    path: Path,
    form: Form,
    images: Tensor,
    *,
    dynamic: Sequence[str],
    step: int,
    target: str,
    lower: Lower | None = None,
) -> Written:
    """Write a model, without a description, in standard operators whatever ``target`` says.

    ``lower`` changes the precision of the file in ONNX format on the way.

    Raises:
        ConfigError: a package is missing, or the model cannot be traced; CheckpointError: the way there is not open.
    """
    openvino = needed("openvino")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        between = Path(folder) / "model.onnx"
        written = onnx_files.write(between, form, images, dynamic=dynamic, step=step, target="openvino", lower=lower)
        try:
            openvino.save_model(openvino.Core().read_model(between), path, compress_to_fp16=False)
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO does not take this model: {first_line(error)}") from error
    return written._replace(packages=(*written.packages, "openvino"))


def describe(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into the file's runtime information, in place of what it said before."""
    openvino = needed("openvino")
    model = openvino.Core().read_model(path)
    for name, text in entries.items():
        model.set_rt_info(text, name)
    # Weights are mapped from the file that is written again.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        again = Path(folder) / path.name
        openvino.save_model(model, again, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            again.with_suffix(suffix).replace(path.with_suffix(suffix))
