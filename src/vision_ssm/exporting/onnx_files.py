"""A model as a file in ONNX format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vision_ssm.errors import CheckpointError
from vision_ssm.exporting.lowering import Lower, Lowered, Written
from vision_ssm.exporting.operators import GLA_STEPS, SCAN_STEPS, lone_gla_steps, lone_scan_steps
from vision_ssm.exporting.programs import INPUT, program, quiet
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.runtimes import MICROSOFT, first_line, needed

__all__ = ["describe", "write"]

MOST = 2**24
"""Numbers of a tensor up to which it is computed in advance."""

EXPORTER = "onnx_ir"
"""Logger of it."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


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
    """Write a model, without a description.

    ``lower`` changes the precision of the file where it lies.

    Raises:
        ConfigError: a package is missing, or the model cannot be traced; CheckpointError: ONNX has no words for it.
    """
    for package in PACKAGES:
        needed(package)
    traced = program(form, images, dynamic, step, lone_scan_steps, lone_gla_steps)
    written = _translated(traced, form, target)
    _fold(written.model)
    if MICROSOFT in written.model.opset_imports:  # numbered as if it were ONNX's own
        written.model.opset_imports[MICROSOFT] = 1
    written.save(str(path))
    lowered = Lowered() if lower is None else lower(path)
    _bare(path)
    return Written(PACKAGES, lowered)


def describe(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into the metadata of a file, in place of what it said before."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, **entries})
    onnx.save(model, str(path))


def _bare(path: Path) -> None:
    """Leave out what the exporter notes down for its own developers, which may be larger than the weights."""
    import onnx

    model = onnx.load(str(path))
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    for part in (model.graph, *bodies):
        del part.metadata_props[:]
        for entry in (*part.node, *part.input, *part.output, *part.value_info, *part.initializer):
            del entry.metadata_props[:]
    onnx.save(model, str(path))


def _translated(traced: ExportedProgram, form: Form, target: str) -> Any:
    from vision_ssm.exporting.onnx_boxes import of_boxes
    from vision_ssm.exporting.onnx_nodes import translations

    nodes = translations(target)
    table: Any = {SCAN_STEPS: nodes["scan_steps"], GLA_STEPS: nodes["gla_steps"], **of_boxes()}
    try:
        with quiet(EXPORTER):
            return torch.onnx.export(
                traced,
                (),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(form.outputs),
                custom_translation_table=table,
            )
    except torch.onnx.OnnxExporterError as error:
        raise CheckpointError(f"this model has no form in ONNX: {first_line(error.__cause__ or error)}") from error


def _fold(model: Any) -> None:
    """Compute what depends on weights alone, for OpenVINO knows constants only in the body of a loop, such as A.

    The exporter does so for small tensors.
    """
    from onnxscript import optimizer

    with quiet(EXPORTER):
        optimizer.fold_constants(model, input_size_limit=MOST, output_size_limit=MOST)
