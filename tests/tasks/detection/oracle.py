"""A detector that sees everything: every object is of one grey of its own, of which it knows the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def scene(height: int, width: int, boxes: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """An image [3, H, W] whose object number n (from 1) has the value n, and everything else 0."""
    image = torch.zeros(3, height, width)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        image[:, top:bottom, left:right] = number
    return image


class Oracle(nn.Module):
    """Finds the visible part of each object; the more of it, the higher the score.

    Args:
        labels: class of each object.
        areas: pixels of each whole object.
        masks: whether it gives masks.
        least: share of an object that must be visible.
    """

    def __init__(self, labels: Sequence[int], areas: Sequence[int], *, masks: bool = True, least: float = 0.0) -> None:
        super().__init__()
        self.labels, self.areas, self.masks, self.least = labels, areas, masks, least
        self.seen: list[tuple[int, int]] = []

    def forward(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        return [self._found(image, size) for image, size in zip(images, sizes, strict=True)]

    def _found(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        self.seen.append((image.shape[1], image.shape[2]))
        factor = size[0] / image.shape[1], size[1] / image.shape[2]
        found: dict[str, list[Any]] = {"boxes": [], "labels": [], "scores": [], "masks": []}
        for number in image[0].unique().tolist():
            plane = image[0] == number
            share = int(plane.sum()) / self.areas[int(number) - 1] if number else 0
            if not number or share < self.least:
                continue
            rows, columns = plane.any(1).nonzero()[:, 0], plane.any(0).nonzero()[:, 0]
            box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            found["boxes"].append([box[0] * factor[1], box[1] * factor[0], box[2] * factor[1], box[3] * factor[0]])
            found["labels"].append(self.labels[int(number) - 1])
            found["scores"].append(min(1.0, 0.5 + share / 2))
            found["masks"].append(plane)
        kinds = {"boxes": torch.float32, "labels": torch.int64, "scores": torch.float32}
        result = {name: torch.tensor(found[name], dtype=kind) for name, kind in kinds.items()}
        result["boxes"] = result["boxes"].view(-1, 4)
        if self.masks:
            masks = (
                torch.stack(found["masks"]) if found["masks"] else torch.zeros(0, *image.shape[1:], dtype=torch.bool)
            )
            result["masks"] = masks[:, None]
        return result
