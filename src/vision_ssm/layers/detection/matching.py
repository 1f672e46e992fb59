"""Which object a box is to find, and which boxes are learned from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["Matches", "match", "sample"]

_AT_ONCE = 2**22
"""Pairs of a box and an object whose overlap is held at a time: 500 objects on a large image would take gigabytes."""


class Matches(NamedTuple):
    """What boxes are to find.

    Attributes:
        objects: [N] index of the object that the box overlaps most with, 0 where there is none.
        kinds: [N] 1 where the box is to find it, 0 where it is to find nothing, -1 where neither is learned.
    """

    objects: Tensor
    kinds: Tensor


def match(
    boxes: Tensor,
    objects: Tensor,
    *,
    below: float,
    above: float,
    least_best: float | None = None,
    best_takes_over: bool = False,
) -> Matches:
    """Match boxes [N, 4] with objects [G, 4].

    Args:
        boxes: anchors or proposals.
        objects: boxes of the objects.
        below: a box whose largest IoU is smaller is to find nothing.
        above: a box whose largest IoU is at least this is to find that object.
        least_best: the boxes that share an object's largest IoU are to find something too, if it is at least this and
            not 0. None for no such rule.
        best_takes_over: what they are to find is that object (the last one, if there are several), not the one that
            they overlap most with.
    """
    count = len(boxes)
    best = boxes.new_full((count,), -1.0)
    found = torch.zeros(count, dtype=torch.long, device=boxes.device)
    raised: list[tuple[Tensor, Tensor]] = []
    step = max(_AT_ONCE // max(count, 1), 1)
    for start in range(0, len(objects) if count else 0, step):
        overlap = box_iou(objects[start : start + step], boxes)
        value, index = overlap.max(dim=0)
        found = torch.where(value > best, index + start, found)
        best = torch.maximum(value, best)
        if least_best is not None:
            highest = overlap.amax(dim=1, keepdim=True)
            rows, columns = torch.where((overlap == highest) & (highest >= least_best) & (highest > 0))
            raised.append((rows + start, columns))
    kinds = torch.full((count,), -1, dtype=torch.long, device=boxes.device)
    kinds[best < below] = 0
    kinds[best >= above] = 1
    if raised:
        rows, columns = (torch.cat(part) for part in zip(*raised, strict=True))
        kinds[columns] = 1
        if best_takes_over:
            found[columns] = -1
            found.scatter_reduce_(0, columns, rows, "amax")
    return Matches(found, kinds)


def sample(kinds: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Draw at most ``count`` boxes, of which at most a ``share`` is to find something.

    Returns:
        indices of those that are to find something, and of those that are to find nothing, both ascending.
    """
    positive = _drawn(torch.where(kinds == 1)[0], int(count * share))
    return positive, _drawn(torch.where(kinds == 0)[0], count - len(positive))


def _drawn(indices: Tensor, most: int) -> Tensor:
    if len(indices) <= most:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:most]].sort().values
