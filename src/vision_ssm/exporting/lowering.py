"""Files in ONNX format brought to the precision that is asked for, and what a format's writer returns of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision_ssm.exporting import quantising
from vision_ssm.exporting.checking import Draw, among, check, noise, require
from vision_ssm.exporting.settings import TOLERANCE, Settings
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.exported import ExportedFile, ExportRecord
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.runtimes import OnnxRuntime

__all__ = ["Lower", "Lowered", "Written", "lowering"]

LARGE = 256
"""Numbers of a tensor from which on it is worth a cast."""


class Lowered(NamedTuple):
    """What came of lowering a file's precision.

    Attributes:
        draw: what the check draws its images from afterwards.
        quantised: what INT8 did to the score, in ONNX Runtime; None for another precision.
    """

    draw: Draw = noise
    quantised: quantising.Quantised | None = None


Lower = Callable[[Path], Lowered]
"""What changes the precision of a file in ONNX format where it lies."""


class Written(NamedTuple):
    """What the writer of a format returns.

    Attributes:
        packages: names of those that wrote the file and run it.
        lowered: see `Lowered`.
    """

    packages: tuple[str, ...]
    lowered: Lowered = Lowered()


def lowering(
    loaded: Loaded, form: Form, record: ExportRecord, asked: Settings, on_stage: quantising.OnStage
) -> Lower | None:
    """Return what brings a file to the precision that is asked for; None where it has that already."""

    def quantise(path: Path) -> Lowered:
        file = ExportedFile(loaded.info, dataclasses.replace(record, precision="float32"), OnnxRuntime(path))
        require(check(file, form, TOLERANCE["float32"]))
        found, seen = quantising.quantise(path, file, loaded, asked.calibrate or "", on_stage)
        return Lowered(among(seen), found)  # ranges say nothing of noise

    return {"float32": None, "float16": halve, "int8": quantise}[asked.precision]


def halve(path: Path) -> Lowered:
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
    return Lowered()


def _read_by_bodies(graph: Any) -> set[str]:
    """Return the names that the bodies of loops read, their own among them."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {name for body in bodies for node in body.node for name in node.input}
