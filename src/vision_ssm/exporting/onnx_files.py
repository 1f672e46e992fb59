"""A model as a file in ONNX format."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from vision_ssm.errors import CheckpointError
from vision_ssm.exporting.operators import GLA_STEPS, SCAN_STEPS, lone_gla_steps, lone_scan_steps
from vision_ssm.exporting.programs import program
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.runtimes import needed

__all__ = ["Lower", "describe", "halve", "write"]

Lower = Callable[[Path], None]
"""What changes the precision of a file in ONNX format."""

MICROSOFT = "com.microsoft"

LARGE = 256
"""Numbers of a tensor from which on it is worth a cast."""

MOST = 2**24
"""Numbers of a tensor up to which it is computed in advance."""

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
) -> tuple[str, ...]:
    """Write a model, without a description; return the names of the packages that wrote and run it.

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
    if lower is not None:
        lower(path)
    _bare(path)
    return PACKAGES


def describe(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into the metadata of a file, in place of what it said before."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, **entries})
    onnx.save(model, str(path))


def halve(path: Path) -> None:
    """Store the weights of a file in float16, each with a ``Cast`` behind it; what is computed stays in float32.

    Runtimes undo the casts once, as they open the file. Small tensors, such as biases, stay as they are.
    """
    import onnx

    model = onnx.load(str(path))
    casts, within = [], _read_by_bodies(model.graph)  # where OpenVINO knows constants only
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= LARGE and tensor.name not in within:
            name, numbers = tensor.name, onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers.astype(np.float16), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))


def _read_by_bodies(graph: Any) -> set[str]:
    """Return the names that the bodies of loops read, their own among them."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {name for body in bodies for node in body.node for name in node.input}


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


def _fold(model: Any) -> None:
    """Compute what depends on weights alone, for OpenVINO knows constants only in the body of a loop, such as A.

    The exporter does so for small tensors.
    """
    from onnxscript import optimizer

    with _quiet():
        optimizer.fold_constants(model, input_size_limit=MOST, output_size_limit=MOST)


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
