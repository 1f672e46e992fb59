"""What is odd about the classes of a run's data, by their counts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vision_ssm.data.labelled.sources import ClassSamples

__all__ = ["FEW", "remarks_on_classes"]

FEW = 5
"""A class of fewer training images is said."""

UNEVEN = 10
"""So many times the images of another class are said."""


def remarks_on_classes(train: ClassSamples, val: ClassSamples, *, balanced: bool) -> list[str]:
    """Say which classes have few training images or none held out, and whether their numbers differ very much.

    Args:
        train: samples to train on.
        val: samples held out.
        balanced: whether the run makes up for rare classes.
    """
    names = train.class_names
    trained, held = Counter(train.targets), Counter(val.targets)
    told = []
    few = [name for target, name in enumerate(names) if trained[target] < FEW]
    if few:
        told.append(f"{_listed(few)} {_have(few)} fewer than {FEW} images to train on.")
    unseen = [name for target, name in enumerate(names) if not held[target]]
    if unseen:
        told.append(f"{_listed(unseen)} {_have(unseen)} no held-out image, so no score tells of {_them(unseen)}.")
    counts = [trained[target] for target in range(len(names)) if trained[target]]
    if not balanced and counts and max(counts) >= UNEVEN * min(counts):
        told.append(
            f"The classes have {min(counts):,} to {max(counts):,} images to train on: data.balanced draws every class "
            "equally often, loss.class_weights balanced weighs the rare ones more."
        )
    return told


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _listed(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more
