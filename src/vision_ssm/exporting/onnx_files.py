"""A model as a file in ONNX format."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vision_ssm.errors import CheckpointError
from vision_ssm.exporting.operators import GLA_STEPS, SCAN_STEPS, lone_gla_steps, lone_scan_steps
from vision_ssm.exporting.programs import program
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.runtimes import needed

__all__ = ["describe", "write"]

MICROSOFT = "com.microsoft"

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write(path: Path, form: Form, images: Tensor, *, dynamic: Sequence[str], step: int, target: str) -> tuple[str, ...]:
    """Write a model, without a description; return the names of the packages that wrote and run it.

    Raises:
        ConfigError: a package is missing, or the model cannot be traced; CheckpointError: ONNX has no words for it.
    """
    for package in PACKAGES:
        needed(package)
    traced = program(form, images, dynamic, step, lone_scan_steps, lone_gla_steps)
    written = _translated(traced, form, target)
    if MICROSOFT in written.model.opset_imports:  # numbered as if it were ONNX's own
        written.model.opset_imports[MICROSOFT] = 1
    written.save(str(path))
    return PACKAGES


def describe(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into the metadata of a file, in place of what it said before."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, **entries})
    onnx.save(model, str(path))


def _translated(traced: ExportedProgram, form: Form, target: str) -> Any:
    from vision_ssm.exporting.onnx_nodes import translations

    nodes = translations(target)
    table: Any = {SCAN_STEPS: nodes["scan_steps"], GLA_STEPS: nodes["gla_steps"]}
    try:
        with _quiet():
            return torch.onnx.export(
                traced,
                (),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=list(form.outputs),
                custom_translation_table=table,
            )
    except torch.onnx.OnnxExporterError as error:
        told = str(error.__cause__ or error).splitlines()[0]
        raise CheckpointError(f"this model has no form in ONNX: {told}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter tells its own developers from the user's terminal."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
