"""Scores of a model on data with known answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vision_ssm import moved
from vision_ssm.data.batches import Samples
from vision_ssm.errors import ConfigError
from vision_ssm.inference.inputs import ImageSize
from vision_ssm.inference.scoring import Scoring, open_scoring
from vision_ssm.storage import whole_file
from vision_ssm.tasks.meters import read_scores
from vision_ssm.tasks.registry import find_task
from vision_ssm.tasks.scores import Score
from vision_ssm.tasks.task import Meter, Task
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.opening import open_model

__all__ = ["Evaluation", "draws", "evaluate", "evaluation"]

moved.answer(__name__)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The scores of a model.

    Attributes:
        task: what was evaluated.
        weights: the file, or the name, of the model.
        scores: by name, see ``named``; for classification top1, of more than five classes top5, in [0, 1] and the loss.
        named: how the scores are called and read, the primary one first.
        count: number of images.
        meter: of the task, with all that it has collected; for classification ``confusion``, ``per_class``,
            ``guesses``.
        found: what the data were, in a line for people, where the data can say.
        split: which part of the data was scored.
        of: number of images that this part was cut from, None where it is a part of the data's own, or all of them.
        samples: what was scored.
        by: the task as it was asked, which tells more of the meter and draws it.
    """

    task: str
    weights: str
    scores: dict[str, float]
    named: tuple[Score, ...]
    count: int
    meter: Any
    found: str = ""
    split: str = "all"
    of: int | None = None
    samples: Samples | None = field(default=None, compare=False)
    by: Task | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        scores = ", ".join(f"{score.title} {score.text(self.scores[score.name])}" for score in self.named)
        return f"Evaluation({self.task} by {self.weights!r} on {self.count:,} images ({self.split}): {scores})"

    def __getattr__(self, name: str) -> Any:
        """Say where a score or a detail is that was an attribute before evaluations knew of tasks."""
        values = self.__dict__
        if name in values.get("scores", ()):
            raise AttributeError(f"Evaluation.{name} is now Evaluation.scores[{name!r}]")
        if not name.startswith("__") and hasattr(values.get("meter"), name):
            raise AttributeError(f"Evaluation.{name} is now Evaluation.meter.{name}")
        raise AttributeError(f"an Evaluation has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return count, scores (None where there is nothing to score) and the task's details as plain JSON values.

        For classification these are precision, recall and F1 per class, the confusion matrix, calibration, and the
        files of the surest mistakes.
        """
        scores = {name: value if math.isfinite(value) else None for name, value in self.scores.items()}
        about = {"task": self.task, "weights": self.weights, "split": self.split, "count": self.count, "of": self.of}
        return {**about, **scores, **self.details()}

    def details(self) -> dict[str, Any]:
        """Return what else is worth keeping, as plain JSON values."""
        if self.by is None or self.samples is None:
            return dict(self.meter.details())
        return self.by.details(self.meter, self.samples)

    def draw(self, folder: str | Path) -> list[Path]:
        """Draw what the task draws of an evaluation, such as ``confusion.png``, into a folder; return the files.

        Raises:
            ConfigError: the task draws nothing; DataError: a picture cannot be written.
        """
        if self.by is None or self.samples is None or not draws(self.task):
            raise ConfigError(f"the task {self.task} draws no pictures of an evaluation; it tells the scores only.")
        name = f"{_called(self.weights)} on {self.samples.name}"
        return self.by.pictures(self.meter, self.samples, Path(folder), title=name)

    def write(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all.

        Raises:
            DataError: the file cannot be written.
        """
        with whole_file(path) as part:
            part.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")


def evaluate(
    weights: str | Path | Loaded,
    data: str | Path | Samples,
    split: str | None = None,
    *,
    batch_size: int = 32,
    img_size: ImageSize = None,
    device: str | torch.device | None = None,
    amp: str = "none",
    workers: int = 0,
    val_fraction: float | None = None,
    download: bool = False,
    model: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Score a model on data with known answers: on all that is given, or on one split of it.

    Args:
        weights: a weights file, the name of one that ships with the package, a loaded model
            (`vision_ssm.load_model`), or with ``model`` a checkpoint without description, such as the published ones.
        data: folder or name, as for training; or samples that are open already.
        split: ``train``, ``val``, ``test`` or ``all``; without effect on open samples. None takes the held-out images
            of the data where they have such a part, or where these are the data that the weights were trained on
            (without it, ``val_fraction`` of them were held out); else all images.
        batch_size: images per run of the model.
        img_size: side, or (height, width), to resize to instead of the size of training; ``native`` for every image
            at its own size, one by one.
        device: None takes a GPU if there is one, else the CPU.
        amp: ``none``, ``bf16`` or ``fp16`` autocast.
        workers: decoding processes; 0 decodes in this one.
        val_fraction: share of the data to cut off as ``val`` where they have no such part; None takes the one of
            training, and cuts the data of training only.
        download: whether a named data set may be fetched.
        model: registered name of the model that a checkpoint belongs to.
        on_progress: called with (images done, images in all); where images are made to be judged, after that with
            (steps done, steps in all).
        options: of the task, such as ``window`` of a segmentation.

    Raises:
        DataError: unusable data, labels that the model does not know, or a split that the data do not have;
        CheckpointError: unusable weights;
        ConfigError: an option is out of range.
    """
    scoring = open_scoring(
        open_model(weights, model=model, device=device),
        data,
        split,
        batch_size=batch_size,
        img_size=img_size,
        amp=amp,
        val_fraction=val_fraction,
        download=download,
        **options,
    )
    return evaluation(scoring, scoring.meter(workers=workers, on_progress=on_progress))


def evaluation(scoring: Scoring, meter: Meter) -> Evaluation:
    """Return what a meter says that has seen all that is scored."""
    info, samples = scoring.loaded.info, scoring.samples
    return Evaluation(
        task=info.task,
        weights=info.source,
        scores=read_scores(meter, scoring.task),
        named=scoring.task.scores,
        count=meter.count,
        meter=meter,
        found=getattr(samples, "found", ""),
        split=scoring.split,
        of=scoring.of,
        samples=samples,
        by=scoring.task,
    )


def draws(task: str) -> bool:
    """Whether a task draws pictures of its evaluations."""
    return bool(find_task(task).pictures)


def _called(weights: str) -> str:
    """The weights in a heading: a file with its folder, which is that of its run."""
    path = Path(weights)
    return f"{path.parent.name}/{path.name}" if path.suffix and path.parent.name else path.name
