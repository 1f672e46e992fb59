"""INT8: the products of an ONNX file in whole numbers, what this costs in score, and which layers cost most.

    x W ≈ s_x s_w (X - z) V       X = round(x / s_x) + z in [0, 255],  V = round(W / s_w) in [-127, 127]

s_x and z come from the smallest and largest value that x takes on images of the user's own data (post-training static
quantisation), s_w from the largest of each column of W. Only products with a matrix of weights, and convolutions of one
group, are taken: scans, norms, the small products that make Δ, B and C of all directions at once, and depthwise
convolutions stay in float. Source: Jacob et al., arXiv:1712.05877; the work is onnxruntime.quantization's.

Where the score falls by more than a point, each layer is quantised alone to see how far the outputs move, and those
that move them most stay in float, 1, 2, 4, 8, ... of them, until it does not.
"""

from __future__ import annotations

import ast
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_ssm.data.loader import EpochLoader
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.exporting.programs import INPUT, quiet
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.tasks.exported import Run
from vision_ssm.tasks.scores import Score
from vision_ssm.tasks.task import Task
from vision_ssm.weights.exported import ExportedFile
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.runtimes import OnnxRuntime, Runtime

__all__ = ["OnStage", "Quantised", "Quantiser", "quantise", "require_data", "scored_again"]

PHOTOGRAPH = 224 * 224
"""Pixels; of larger images fewer are taken, since each says more and takes longer."""

IMAGES = 128
"""Photographs of the data that the ranges of values are taken from, or as many pixels."""

COMPARED = 16
"""Of them, that layers are compared on, one after the other."""

POINT = 0.01
"""How far the score may fall."""

OnStage = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

WINDOW = "window"
"""Option of tasks that take large images apart."""

KINDS = ("MatMul", "Gemm", "Conv")
WHOLE_OUTPUT = ("MatMul", "Gemm")  # their sums stay as they are; a convolution is whole numbers only with its result


@dataclass(frozen=True)
class Layer:
    """A product.

    Attributes:
        name: of the module that it comes from.
        error: of the first output when it alone is quantised, ‖quantised - float‖ / ‖float‖; None where nobody looked.
        kept: whether it stayed in float.
    """

    name: str
    error: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class Quantised:
    """What came of quantising.

    Attributes:
        score: the score that decides, as the task calls it.
        before: it, of the file in float.
        after: it, of the file that was kept.
        images: that were scored.
        calibrated: images that the ranges are from.
        layers: all products, the costliest first where errors were measured.
    """

    score: str
    before: float
    after: float
    images: int
    calibrated: int
    layers: tuple[Layer, ...]


def products(path: Path) -> dict[str, str]:
    """Return the nodes of an ONNX file that are quantised, and the module that each comes from."""
    import onnx

    graph = onnx.load(str(path)).graph
    dims = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in KINDS or dims.get(node.input[1]) != (4 if node.op_type == "Conv" else 2):
            continue
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if groups == 1:
            found[node.name] = _module_of(node)
    return found


def _module_of(node: Any) -> str:
    """Say from which module of the model a node comes: the exporter writes the scopes down, innermost last."""
    said = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(said.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]).removeprefix("model.") if len(scopes) > 1 else str(node.name)


def score_of(
    file: Run, loaded: Loaded, data: str | Path, on_progress: Callable[[int, int], None] | None = None
) -> tuple[float, int]:
    """Return the deciding score of a file on the user's data, and of how many images it is."""
    task = loaded.task()
    stand_in = Loaded(task.stand_in(file).eval(), loaded.info)
    found = evaluate(stand_in, data, on_progress=on_progress, **_in_windows(task, file))
    return found.scores[found.named[0].name], found.count


def _in_windows(task: Task, file: Run) -> dict[str, Any]:
    """Return what a task has to be asked for whose images keep their sizes, where the file takes only one."""
    known = getattr(task.Options, "model_fields", {})
    return {WINDOW: max(file.size)} if task.native and file.size is not None and WINDOW in known else {}


def require_data(loaded: Loaded, data: str | Path) -> None:
    """Look whether a model can be judged on the data, before anything takes long.

    Raises:
        ConfigError: no score decides in shares of one; DataError: unusable data, or classes unknown to the model.
    """
    _deciding(loaded)
    task: Task = loaded.task(path=str(data))
    task.open(_for_ranges(task))


def images_seen(
    file: Run, loaded: Loaded, data: str | Path, on_progress: Callable[[int, int], None] | None = None
) -> list[Tensor]:
    """Return what a file is given, one prepared image [1, C, h, w] each, as it predicts `IMAGES` of the data.

    They come from the training part where the data have one, evenly spread over it.
    """
    task: Task = loaded.task(path=str(data))
    samples = task.open(_for_ranges(task))
    count = min(IMAGES, len(samples))
    chosen = task.subset(samples, [number * len(samples) // count for number in range(count)])
    watched = _Watched(file)
    model = task.stand_in(watched).eval()
    task.ask(_in_windows(task, file))
    transform = task.transform(loaded.info.preprocessing, train=False, native=task.native)
    for done, batch in enumerate(EpochLoader(chosen, transform, collate=task.collate, batch_size=1), start=1):
        with torch.inference_mode():
            task.predict(model, batch)
        if on_progress is not None:
            on_progress(done, count)
    return watched.seen[:: -(-len(watched.seen) // as_many(IMAGES, watched.seen[0]))]


def _for_ranges(task: Task) -> str:
    return "train" if "train" in task.own_splits() else "all"


def as_many(photographs: int, image: Tensor) -> int:
    """Return how many images of this size have at most the pixels of so many photographs, and at least one."""
    return min(photographs, max(1, photographs * PHOTOGRAPH // (image.shape[-2] * image.shape[-1])))


class Quantiser:
    """Makes INT8 files of one ONNX file in float.

    Args:
        path: of the file.
        seen: images [1, C, h, w] that the ranges of values are taken from.
        on_stage: hears how far it is.
    """

    def __init__(self, path: Path, seen: Sequence[Tensor], on_stage: OnStage) -> None:
        from onnxruntime import quantization

        self.path, self.seen, self.nodes, self._on_stage = path, seen, products(path), on_stage
        if not self.nodes:
            raise ConfigError("there is no product to quantise in this model.")
        with quiet(), tempfile.TemporaryDirectory() as folder:
            calibrator = quantization.create_calibrator(
                path,
                list(KINDS),
                augmented_model_path=str(Path(folder) / "watched.onnx"),
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Reader(seen, partial(on_stage, "taking ranges of values")))
            self._ranges = calibrator.compute_data()

    def write(self, path: Path, nodes: Sequence[str]) -> None:
        """Write the file with these nodes quantised."""
        import onnx
        from onnxruntime.quantization import QDQQuantizer, QuantType

        with quiet():
            made = QDQQuantizer(
                onnx.load(str(self.path)),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._ranges,
                nodes_to_quantize=list(nodes),
                nodes_to_exclude=[],
                op_types_to_quantize=list(KINDS),
                extra_options={"OpTypesToExcludeOutputQuantization": list(WHOLE_OUTPUT)},
            )
            made.quantize_model()
            made.model.topological_sort()
        onnx.save(made.model.model, str(path))

    def errors(self) -> dict[str, float]:
        """Return for each node how far the first output moves when it alone is quantised, the furthest first."""
        exact = self._outputs(OnnxRuntime(self.path))
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for number, node in enumerate(self.nodes):
                self._on_stage("quantising each product alone", number, len(self.nodes))
                alone = Path(folder) / f"{number}.onnx"
                self.write(alone, [node])
                found[node] = float((self._outputs(OnnxRuntime(alone)) - exact).norm() / exact.norm())
                alone.unlink()
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    def _outputs(self, runtime: Runtime) -> Tensor:
        compared = self.seen[: as_many(COMPARED, self.seen[0])]
        return torch.cat([runtime(images)[0].flatten() for images in compared]).double()


def quantise(
    path: Path, file: ExportedFile, loaded: Loaded, data: str | Path, on_stage: OnStage
) -> tuple[Quantised, list[Tensor]]:
    """Quantise an ONNX file where it lies; return what came of it, and the images that it was calibrated on.

    Args:
        path: of the file in float.
        file: opened.
        loaded: the model that it came from, prepared as the file is.
        data: folder or name of data with known answers.
        on_stage: hears how far it is.

    Raises:
        ConfigError: no score of the data decides in shares of one; CheckpointError: the score falls by more than a
            point whatever stays in float.
    """
    score = _deciding(loaded)
    before, images = score_of(file, loaded, data, partial(on_stage, "scoring in float32"))
    seen = images_seen(file, loaded, data, partial(on_stage, "looking at images"))
    quantiser = Quantiser(path, seen, on_stage)
    draft = path.with_name("quantised.onnx")
    errors: dict[str, float] = {}
    for kept in _doubling(len(quantiser.nodes)):
        if kept and not errors:
            errors = quantiser.errors()
        order = list(errors or quantiser.nodes)
        quantiser.write(draft, order[kept:])
        scoring = "scoring in INT8" + (f" with {kept} of {len(order)} products in float" if kept else "")
        lower = dataclasses.replace(file, runtime=OnnxRuntime(draft))
        after, _ = score_of(lower, loaded, data, partial(on_stage, scoring))
        if before - after <= POINT:
            break
    else:
        raise CheckpointError(
            f"in INT8 the {score.title} falls from {score.text(before)} to {score.text(after)}, with {kept} of "
            f"{len(order)} products in float: this model does not bear it. No file was written."
        )
    draft.replace(path)
    layers = tuple(Layer(quantiser.nodes[node], errors.get(node), place < kept) for place, node in enumerate(order))
    return Quantised(score.name, before, after, images, len(seen), layers), seen


def scored_again(
    found: Quantised, file: ExportedFile, loaded: Loaded, data: str | Path, on_stage: OnStage
) -> Quantised:
    """Return the outcome with the score that another runtime reaches with the file. Raises CheckpointError likewise."""
    after, _ = score_of(file, loaded, data, partial(on_stage, "scoring in the other runtime"))
    if found.before - after > POINT:
        score = _deciding(loaded)
        raise CheckpointError(
            f"in INT8 the {score.title} falls from {score.text(found.before)} to {score.text(after)} in this runtime, "
            "and in ONNX Runtime it does not: choose format onnx. No file was written."
        )
    return dataclasses.replace(found, after=after)


def _deciding(loaded: Loaded) -> Score:
    score = loaded.task().primary
    if score.unit != "%" or not score.higher_is_better:
        raise ConfigError(
            f"INT8 files are judged by a share that is to be high, and {score.title} decides in the task "
            f"{loaded.info.task}; leave the precision out."
        )
    return score


def _doubling(count: int) -> Iterator[int]:
    """Yield 0, 1, 2, 4, ... below ``count``."""
    yield 0
    kept = 1
    while kept < count:
        yield kept
        kept *= 2


class _Watched:
    """Keeps the images that a file is given, in ``seen``. What it says of the first ones of a shape stands for all."""

    def __init__(self, file: Run) -> None:
        self._file, self.size, self.seen = file, file.size, list[Tensor]()
        self._said: dict[torch.Size, dict[str, Tensor]] = {}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.seen.extend(images[index : index + 1] for index in range(len(images)))
        if images.shape not in self._said:  # nobody reads the answers, and a run of a large image takes seconds
            self._said[images.shape] = self._file(images)
        return self._said[images.shape]


class _Reader:
    """Hands images to the calibration, as `onnxruntime.quantization.CalibrationDataReader` does."""

    def __init__(self, images: Sequence[Tensor], on_progress: Callable[[int, int], None]) -> None:
        self._left, self._count, self._on_progress = iter(enumerate(images)), len(images), on_progress

    def get_next(self) -> dict[str, Any] | None:
        number, images = next(self._left, (self._count, None))
        self._on_progress(number, self._count)
        return None if images is None else {INPUT: images.numpy()}
