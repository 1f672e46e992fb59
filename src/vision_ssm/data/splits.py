"""Choose held-out samples once and for all, from their names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["VAL_FRACTION", "folds_of", "held_out"]

VAL_FRACTION = 0.2
"""Share of each class held out of a folder that has no held-out images of its own."""


def held_out(names: Sequence[str], targets: Sequence[int], fraction: float) -> set[int]:
    """Return the positions of the samples to hold out: ``fraction`` of every class, by the hash of the name.

    The choice does not depend on the order of the samples, on the machine or on a seed. A class of one sample stays
    in training; a class of two or more gives at least one and keeps at least one.
    """
    by_class: dict[int, list[int]] = {}
    for position, target in enumerate(targets):
        by_class.setdefault(target, []).append(position)
    chosen: set[int] = set()
    for positions in by_class.values():
        count = min(max(round(fraction * len(positions)), 1), len(positions) - 1)
        chosen.update(_by_hash(positions, names)[:count])
    return chosen


def folds_of(names: Sequence[str], groups: Sequence[int], folds: int) -> list[int]:
    """Return the fold of every sample, 0 to ``folds`` - 1: each group is dealt out evenly, by the hash of the name.

    The folds' sizes differ by at most one, as those of each group do. Like `held_out`, the choice does not depend on
    the order of the samples, on the machine or on a seed.
    """
    by_group: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        by_group.setdefault(group, []).append(position)
    chosen = [0] * len(names)
    dealt = 0
    for group in sorted(by_group):
        for position in _by_hash(by_group[group], names):
            chosen[position] = dealt % folds
            dealt += 1
    return chosen


def _by_hash(positions: Iterable[int], names: Sequence[str]) -> list[int]:
    return sorted(
        positions, key=lambda position: hashlib.sha256(names[position].encode("utf-8", "surrogatepass")).digest()
    )
