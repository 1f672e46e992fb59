"""Run a model on image files, folders of them, or images in memory, and say what it finds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vision_ssm.data.batches import Batch
from vision_ssm.data.geo.grid import Grid
from vision_ssm.data.geo.raster import open_raster
from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.data.scenes import is_scene
from vision_ssm.device import autocast
from vision_ssm.errors import ConfigError, DataError, ShapeError, suggestion
from vision_ssm.inference.inputs import (
    Failure,
    ImageLike,
    ImageSize,
    Named,
    find_images,
    is_native,
    of_one_image,
    prepare_images,
    read_picture,
)
from vision_ssm.inference.naming import free_name
from vision_ssm.storage import require_writable, whole_file
from vision_ssm.tasks.registry import find_task
from vision_ssm.tasks.task import Result, Task
from vision_ssm.weights.files import Loaded, require_command
from vision_ssm.weights.opening import open_model

__all__ = ["Failure", "ImageLike", "Prediction", "Predictions", "predict", "require_format"]


@dataclass(frozen=True, repr=False)
class Prediction:
    """What was found in one image.

    Attributes:
        path: of the image, or its number where it came from memory.
        result: the task's, with ``to_dict()`` and ``draw(image)``; its own attributes can be read here as well, such as
            ``classes`` of a classification.
    """

    path: str
    result: Result

    def __repr__(self) -> str:
        return f"Prediction({self.path!r}, {self.result!r})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "result":  # not while being unpickled
            raise AttributeError(name)
        return getattr(self.result, name)


@dataclass(frozen=True, repr=False)
class Predictions:
    """What `predict` returns: ``results`` in the order asked for, and ``failures``.

    Attributes:
        results: one per image that could be used.
        failures: the others, and images of whose result a file could not be written.
        task: what the model was trained for.
        weights: the file, or the name, that they came from.
        exporter: of the task, see `vision_ssm.tasks.task.Task.export`.
    """

    results: tuple[Prediction, ...]
    failures: tuple[Failure, ...]
    task: str
    weights: str
    exporter: Callable[[str, Sequence[tuple[str, Result]]], dict[str, str]] = field(repr=False, compare=False)

    def export(self, form: str, path: str | Path) -> None:
        """Write what was found in a format of another program, whole or not at all.

        Args:
            form: a format of the task; `vision_ssm.tasks.registry.TaskInfo.formats` lists them.
            path: a file where its name has a suffix, which takes a format of one file; else a folder.

        Raises:
            ConfigError: unknown format, or one of several files for a single one; DataError: it cannot be written.
        """
        require_format(self.task, form)
        path = Path(path)
        files = self.exporter(form, [(found.path, found.result) for found in self.results])
        if path.suffix and len(files) != 1:
            raise ConfigError(f"{form} is written as {len(files)} files here; give a folder instead of {str(path)!r}.")
        for name, text in files.items():
            with whole_file(path if path.suffix else path / name) as part:
                part.write_text(text, encoding="utf-8")

    @property
    def complete(self) -> int:
        """Number of images that nothing failed of; what was found in an image may fail to be written."""
        failed = {failure.path for failure in self.failures}
        return sum(found.path not in failed for found in self.results)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failures" if self.failures else ""
        return f"Predictions({self.task} by {self.weights!r}: {len(self.results)} results{failed})"

    def write(self, path: str | Path) -> None:
        """Write to a .json or .csv file, whole or not at all.

        JSON: `to_dict`. CSV: a column ``path``, the columns of the task's results (for classification one line per
        image and rank: rank, class, probability), ``weights``, and ``error`` for failures.

        Raises:
            ConfigError: another suffix; DataError: the file cannot be written.
        """
        path = Path(path)
        writers = {".json": self._write_json, ".csv": self._write_csv}
        writer = writers.get(path.suffix.lower())
        if writer is None:
            raise ConfigError(f"predictions are written to .json or .csv files, got {str(path)!r}.")
        with whole_file(path) as part:
            writer(part)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"task", "weights", "results": [{"path", ...}], "failures": [{"path", "reason"}]}`` in JSON."""
        results = [{"path": prediction.path, **prediction.result.to_dict()} for prediction in self.results]
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        return {"task": self.task, "weights": self.weights, "results": results, "failures": failures}

    def _write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        rows = [{"path": found.path, **record} for found in self.results for record in found.result.records()]
        columns = [*dict.fromkeys(["path", *(column for row in rows for column in row)]), "weights", "error"]
        rows += [{"path": failure.path, "error": failure.reason} for failure in self.failures]
        rows = [{**row, "weights": self.weights} for row in rows]
        # File names need not be valid text; this writes their bytes back as they were.
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(rows)


def predict(
    weights: str | Path | Loaded | None = None,
    images: ImageLike | Iterable[ImageLike | Named] = (),
    *,
    batch_size: int = 16,
    img_size: ImageSize = None,
    device: str | torch.device | None = None,
    amp: str = "none",
    model: str | None = None,
    max_pixels: int = MAX_PIXELS,
    pictures: str | Path | None = None,
    results: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Predictions:
    """Run a model on images. Files that cannot be read do not stop the others; they are listed in ``failures``.

    Args:
        weights: a weights file, the name of one that ships with the package, a loaded model
            (`vision_ssm.load_model`), or with ``model`` a checkpoint without description, such as the published ones.
            None takes the shipped model of ten everyday classes: ``predict(images=["cat.jpg"])``;
            ``vision_ssm.load_model().info`` tells what it knows.
        images: one image or several, see `ImageLike`.
        batch_size: images per run of the model.
        img_size: side, or (height, width), to resize to instead of the size of training; ``native`` for every image
            at its own size, one by one, embedded in strips as it is read (docs/large_images.md).
        device: None takes a GPU if there is one, else the CPU.
        amp: ``none``, ``bf16`` or ``fp16`` autocast.
        model: registered name of the model that a checkpoint belongs to.
        max_pixels: see `vision_ssm.data.images.read_image`.
        pictures: folder for a PNG file per image with what was found drawn on it; None draws nothing.
        results: folder for what was found in files of its kind, named after the images (`Result.save`): maps of
            classes as GeoTIFF or PNG, else JSON; None writes none. Scenes that are read window by window are written
            as they are read, and are in memory only without such a folder.
        on_progress: called with (images done, images in all); for scenes read window by window before that with (rows
            done, rows in all).
        options: of the task. Classification: ``top_k``, the number of classes to report per image (5).

    Raises:
        DataError: no image at all; ConfigError: an option is unknown or out of range; CheckpointError: unusable
        weights, or of a task that predicts nothing; ShapeError: ``img_size`` is too small for the model; with
        ``native`` that is a failure of the image.
    """
    failures: list[Failure] = []
    found = find_images(images, failures)
    drawn = None if pictures is None else Path(pictures)
    saved = None if results is None else Path(results)
    for folder in (drawn, saved):
        if folder is not None:  # found out now rather than after the work
            require_writable(folder)
    loaded = open_model(weights, model=model, device=device)
    require_command(loaded.info, "predict")
    task = loaded.task()
    task.ask(options)
    if results is None and task.wants_files():
        raise ConfigError(f"{task.wants_files()} are written to files; give a folder of results (--results DIR).")
    kept = _Kept(failures, drawn, saved, max_pixels)
    whole: list[Named] = []
    for named in found:
        try:
            native = is_native(img_size) or (img_size is None and task.native)
            if not (native and _streamed(named, task, loaded, amp, kept, on_progress)):
                whole.append(named)
        except (DataError, ShapeError) as error:  # ShapeError: windows of a size that this model refuses
            failures.append(Failure(named.name, str(error)))
    batches = prepare_images(
        whole,
        loaded,
        task,
        failures,
        batch_size=batch_size,
        img_size=img_size,
        amp=amp,
        max_pixels=max_pixels,
        on_progress=on_progress,
    )
    for used, batch in batches:
        outputs = of_one_image(partial(_outputs, task, loaded, batch, amp), used, failures)
        if outputs is None:
            continue
        for named, result in zip(used, task.results(outputs, batch), strict=True):
            if result is None:
                failures.append(Failure(named.name, "the model's output is not finite"))
                continue
            kept.add(named, result.placed(grid) if (grid := _grid(named, task)) is not None else result)
    about = loaded.info.task, loaded.info.source
    return Predictions(kept.in_order(found), tuple(failures), *about, exporter=task.export)


def require_format(task: str, form: str) -> None:
    """Raise ConfigError unless predictions of ``task`` can be written in a format called ``form``."""
    known = find_task(task).formats
    if form not in known:
        raise ConfigError(
            f"predictions of the task {task} have no format {form!r}.{suggestion(form, known)} "
            f"Formats: {', '.join(known) or 'none'}."
        )


class _Kept:
    """Results, and the files that are written of each."""

    def __init__(self, failures: list[Failure], pictures: Path | None, results: Path | None, max_pixels: int) -> None:
        self._failures, self._pictures, self._results, self._max_pixels = failures, pictures, results, max_pixels
        self._of_pictures: set[str] = set()
        self._of_results: set[str] = set()
        self._stems: dict[int, Path] = {}  # by the image's identity: two images may share a name
        self._found: list[tuple[Named, Prediction]] = []

    def stem(self, named: Named) -> Path | None:
        """Where files of the result of an image go, but for their suffix."""
        if self._results is not None and id(named) not in self._stems:
            self._stems[id(named)] = self._results / free_name(named.name, "", self._of_results)
        return self._stems.get(id(named))

    def add(self, named: Named, result: Result) -> None:
        """Keep a result, and write what is asked for of it."""
        self._found.append((named, Prediction(named.name, result)))
        stem = self.stem(named)
        if stem is not None:
            try:
                result.save(stem)
            except DataError as error:
                self._failures.append(Failure(named.name, f"not all files of its result: {error}"))
        if self._pictures is not None:
            try:
                picture = read_picture(named.image, self._max_pixels)
            except DataError as error:  # read in strips, it may be too large to be drawn on
                self._failures.append(Failure(named.name, f"no picture of its result: {error}"))
                return
            drawn = result.draw(picture)
            with whole_file(self._pictures / free_name(named.name, ".png", self._of_pictures)) as part:
                drawn.save(part, format="png")

    def in_order(self, found: Sequence[Named]) -> tuple[Prediction, ...]:
        """The results in the order in which images were asked for."""
        places = {id(named): place for place, named in enumerate(found)}
        return tuple(prediction for _, prediction in sorted(self._found, key=lambda pair: places[id(pair[0])]))


def _streamed(
    named: Named, task: Task, loaded: Loaded, amp: str, kept: _Kept, on_progress: Callable[[int, int], None] | None
) -> bool:
    """Predict an image as it is read, if it is a scene that the task reads so; False if it is to be taken whole."""
    if not _is_scene(named, task):
        return False
    with open_raster(str(named.image)) as scene:
        stem = kept.stem(named)
        with torch.inference_mode(), autocast(next(loaded.model.parameters()).device, amp):
            result = task.predict_scene(loaded.model, scene, loaded.info.preprocessing, stem, on_progress)
    if result is not None:
        kept.add(named, result)
    return result is not None


def _is_scene(named: Named, task: Task) -> bool:
    return task.scenes and isinstance(named.image, (str, Path)) and is_scene(named.image)


def _grid(named: Named, task: Task) -> Grid | None:
    if not _is_scene(named, task):
        return None
    with open_raster(str(named.image)) as scene:
        return scene.grid


@torch.inference_mode()
def _outputs(task: Task, loaded: Loaded, batch: Batch, amp: str) -> Any:
    with autocast(next(loaded.model.parameters()).device, amp):
        return task.predict(loaded.model, batch)
