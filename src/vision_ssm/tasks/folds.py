"""The parts of data that are cut into folds: one is held out, the others are trained on."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from vision_ssm.data.batches import Samples
from vision_ssm.data.splits import folds_of
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.task import Task

__all__ = ["Fold", "open_fold"]


class Fold(NamedTuple):
    """Some samples, and all those that they were cut from."""

    samples: Samples
    whole: Samples


def open_fold(task: Task, split: Literal["train", "val"], fold: int, folds: int) -> Fold:
    """Open what a fold trains on (``train``) or holds out (``val``).

    The folds are cut within each group of `Task.groups`, by a hash of the paths within the data: they are the same on
    every machine.

    Raises:
        ConfigError: the data have a held-out part of their own, or fewer samples than folds.
        DataError: as `Task.open`.
    """
    own = task.own_splits()
    if own:
        raise ConfigError(
            f"data.folds cuts data that have no held-out part of their own, and {task.settings.data.path!r} has "
            f"{', '.join(own)}; give a folder of all images, or leave data.folds null."
        )
    samples = task.adopt(task.open_unseen("all") if task.settings.data.skip_unreadable else task.open("all"))
    if len(samples) < folds:
        raise ConfigError(f"data.folds must be at most the {len(samples)} images there are, got {folds}.")
    groups = task.groups(samples)
    chosen = folds_of(_names(samples.paths), [0] * len(samples) if groups is None else groups, folds)
    keep = [at for at, own_fold in enumerate(chosen) if (own_fold == fold) == (split == "val")]
    whole = getattr(samples, "found", "") or f"{len(samples):,} images"
    which = f"fold {fold} of 0 to {folds - 1}" if split == "val" else f"all folds of 0 to {folds - 1} but {fold}"
    return Fold(task.subset(samples, keep, f"{len(keep):,}, {which}, of {whole}"), samples)


def _names(paths: tuple[str, ...]) -> list[str]:
    """The paths below the folder that all of them share."""
    shared = os.path.commonpath(paths)
    return [os.path.relpath(path, shared).replace(os.sep, "/") for path in paths]
