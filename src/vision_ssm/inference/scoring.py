"""What is scored on what, opened once, and run through the model: all of it, or some consecutive samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vision_ssm.data.batches import Samples
from vision_ssm.data.loader import EpochLoader, worker_failures
from vision_ssm.device import autocast
from vision_ssm.errors import CheckpointError, DataError, VisionSSMNotice
from vision_ssm.inference.critics import critic_opener
from vision_ssm.inference.inputs import ImageSize, is_native
from vision_ssm.inference.sample import in_batches
from vision_ssm.tasks.folds import open_fold
from vision_ssm.tasks.task import Meter, Task
from vision_ssm.weights.files import Loaded, WeightsInfo, require_command

__all__ = ["Scoring", "open_scoring"]


@dataclass(frozen=True)
class Scoring:
    """A model and the samples that it is scored on.

    Attributes:
        loaded: the model.
        task: as it was trained, and asked.
        samples: all that are scored.
        split: which part of the data they are.
        of: number of images that this part was cut from, None where it is a part of the data's own, or all of them.
        batch_size: images per run of the model; 1 at their own sizes.
        img_size: as for `vision_ssm.evaluate`.
        amp: likewise.
    """

    loaded: Loaded
    task: Task
    samples: Samples
    split: str
    of: int | None
    batch_size: int
    img_size: ImageSize
    amp: str

    def meter(
        self,
        part: range | None = None,
        *,
        workers: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Meter:
        """Return a meter that has seen the samples.

        Args:
            part: consecutive positions of those that it is to see; None for all.
            workers: decoding processes; 0 decodes in this one.
            on_progress: see `vision_ssm.evaluate`.

        Raises:
            DataError: a sample cannot be read.
            CheckpointError: an output that is not finite.
        """
        native = is_native(self.img_size) or (self.img_size is None and self.task.native)
        own = self.loaded.info.preprocessing
        prepared = own if native or self.img_size is None else self.task.sized(own, self.img_size)  # type: ignore[arg-type]
        loader = EpochLoader(
            self.samples if part is None else self.task.subset(self.samples, part),
            self.task.transform(prepared, train=False, native=native),
            collate=self.task.collate,
            batch_size=1 if native else self.batch_size,
            workers=workers,
        )
        place = next(self.loaded.model.parameters()).device
        meter = self.task.meter()
        with worker_failures():
            for batch in loader:
                moved = batch.to(place)
                if part is not None:  # the meter and some tasks go by the position among all
                    moved = moved._replace(indices=moved.indices + part.start)
                with torch.inference_mode(), autocast(place, self.amp):
                    outputs = self.task.predict(self.loaded.model, moved)
                if not _is_finite(outputs):
                    path = self.samples.paths[int(moved.indices[0])]
                    raise CheckpointError(f"the model's output for {path!r} is not finite.")
                meter.update(outputs, moved)
                if on_progress is not None:
                    on_progress(meter.count, loader.samples)
        how: Any = {"batch_size": self.batch_size, "amp": self.amp, "on_progress": on_progress}
        self.task.complete(meter, partial(in_batches, self.loaded, self.task, prepared, **how))
        return meter


def open_scoring(
    loaded: Loaded,
    data: str | Path | Samples,
    split: str | None = None,
    *,
    batch_size: int = 32,
    img_size: ImageSize = None,
    amp: str = "none",
    val_fraction: float | None = None,
    download: bool = False,
    **options: Any,
) -> Scoring:
    """Open what is scored; arguments and errors are those of `vision_ssm.evaluate`."""
    require_command(loaded.info, "evaluate")
    if isinstance(data, str | Path):
        asked = {"download": download} if val_fraction is None else {"download": download, "val_fraction": val_fraction}
        task = loaded.task(path=str(data), **asked)
        samples, split, cut_from = _part(task, loaded.info, split, data, may_cut=val_fraction is not None)
    else:
        task = loaded.task()
        samples, split, cut_from = task.adopt(data), "all", None
    task.ask(options)
    task.begin_evaluation(samples, critic_opener(next(loaded.model.parameters()).device))
    return Scoring(loaded, task, samples, split, cut_from, batch_size, img_size, amp)


def _part(
    task: Task, info: WeightsInfo, split: str | None, data: str | Path, *, may_cut: bool
) -> tuple[Samples, str, int | None]:
    """Open what is to be scored; returns (samples, split, number of images that it was cut from or None)."""
    own = task.own_splits()
    if info.fold is not None and split != "all" and not own and not may_cut:
        part: Literal["train", "val"] = "train" if split == "train" else "val"
        fold = open_fold(task, part, *info.fold)
        if fold.whole.fingerprint == info.trained_on:
            return fold.samples, part, len(fold.whole)
    if split == "all" or (split or "val") in own:
        split = split or "val"
        return task.open(split), split, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VisionSSMNotice)  # what is scored tells it, once
        seen = bool(info.trained_on) and task.open("train").fingerprint == info.trained_on
        count = len(task.open("all")) if seen or split is not None or may_cut else 0
    if split is None and not (seen or may_cut):
        return task.open("all"), "all", None
    samples = task.open(split or "val")  # a name that is no split is refused here
    # Files of before know the share that was held out, but not of which data.
    if not (seen or may_cut or (info.val_fraction is not None and not info.trained_on)):
        raise DataError(
            f"{str(data)!r} has no part called {split}, and these weights were not trained on it: leave the split out "
            "to score all of it, or say which share to cut off (val_fraction, --val-fraction)."
        )
    return samples, split or "val", count


def _is_finite(outputs: Any) -> bool:
    if isinstance(outputs, Tensor):
        return not outputs.is_floating_point() or bool(outputs.isfinite().all())
    parts = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, list | tuple) else ()
    return all(_is_finite(part) for part in parts)
