"""Accuracy of a model on labelled images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vision_ssm.data.loader import Batch, EpochLoader
from vision_ssm.data.splits import VAL_FRACTION
from vision_ssm.errors import CheckpointError
from vision_ssm.storage import whole_file
from vision_ssm.tasks.classification.classes import match_classes
from vision_ssm.tasks.classification.sources import ImageDataset, open_dataset
from vision_ssm.tasks.classification.task import Classification
from vision_ssm.tasks.classification.transforms import build_eval_transform
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.opening import autocast, open_model

__all__ = ["Evaluation", "Guess", "evaluate"]


class Guess(NamedTuple):
    """One evaluated image: its position in the data set, class, predicted class, and the probability given to it."""

    position: int
    true: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model.

    Attributes:
        top1: share of images whose most probable class is right, in [0, 1].
        top5: share of images whose class is among the five most probable (all, if there are fewer classes).
        per_class: the top-1 share per class; None for a class without images.
        confusion: counts [true class][predicted class].
        count: number of images.
        class_names: of the model, in the order of the indices above.
        guesses: one per image, in the order of the data.
    """

    top1: float
    top5: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    count: int
    class_names: tuple[str, ...]
    guesses: tuple[Guess, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores, without the single guesses, as plain JSON values."""
        return {
            "count": self.count,
            "top1": self.top1,
            "top5": self.top5,
            "class_names": list(self.class_names),
            "per_class": list(self.per_class),
            "confusion": [list(row) for row in self.confusion],
        }

    def write(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all.

        Raises:
            DataError: the file cannot be written.
        """
        with whole_file(path) as part:
            part.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")


def evaluate(
    weights: str | Path | Loaded,
    data: str | Path | ImageDataset,
    split: str = "val",
    *,
    batch_size: int = 32,
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    amp: str = "none",
    workers: int = 0,
    val_fraction: float | None = None,
    download: bool = False,
    model: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a model on one split of a data set.

    Args:
        weights: a weights file, the name of one that ships with the package, a loaded model
            (`vision_ssm.weights.opening.open_model`), or with ``model`` a checkpoint without description, such as
            the published ones.
        data: folder or name, see `vision_ssm.tasks.classification.sources.open_dataset`; or a data set that is open already.
        split: see `open_dataset`; without effect on an open data set.
        batch_size: images per run of the model.
        img_size: side, or (height, width), to resize to instead of the size of training.
        device: None takes a GPU if there is one, else the CPU.
        amp: ``none``, ``bf16`` or ``fp16`` autocast.
        workers: decoding processes; 0 decodes in this one.
        val_fraction: share to hold out where the folder does not say; None takes the one of training, so that no
            training image is counted.
        download: see `open_dataset`.
        model: registered name of the model that a checkpoint belongs to.
        on_progress: called with (images done, images in all).

    Raises:
        DataError: unusable data, or classes that the model does not know; CheckpointError: unusable weights;
        ConfigError: an option is out of range.
    """
    loaded = open_model(weights, model=model, device=device)
    info = loaded.info
    if isinstance(data, (str, Path)):
        fraction = val_fraction or info.val_fraction or VAL_FRACTION
        dataset = open_dataset(data, split, val_fraction=fraction, download=download)
    else:
        dataset = data
    outputs = torch.tensor(match_classes(info.class_names, dataset.class_names))
    preprocessing = info.preprocessing if img_size is None else info.preprocessing.with_size(img_size)
    loader = EpochLoader(dataset, build_eval_transform(preprocessing), batch_size=batch_size, workers=workers)
    task = Classification(info.class_names)
    meter = task.meter()
    guesses: list[Guess] = []
    place = next(loaded.model.parameters()).device
    for batch in loader:
        matched = Batch(batch.images.to(place), outputs[batch.targets].to(place), batch.indices)
        with torch.inference_mode(), autocast(place, amp):
            logits = task.predict(loaded.model, matched)
        if not logits.isfinite().all():
            raise CheckpointError(f"the model's output for {dataset.paths[int(batch.indices[0])]!r} is not finite.")
        meter.update(logits, matched)
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        columns = batch.indices, matched.targets, predicted, probability
        guesses += [Guess(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        if on_progress is not None:
            on_progress(len(guesses), loader.samples)
    return Evaluation(
        top1=meter.top1,
        top5=meter.top5,
        per_class=tuple(None if math.isnan(share) else share for share in meter.per_class),
        confusion=tuple(tuple(row) for row in meter.confusion.tolist()),
        count=meter.count,
        class_names=info.class_names,
        guesses=tuple(guesses),
    )
