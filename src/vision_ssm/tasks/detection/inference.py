"""From an image of any size to the objects in it: the whole image, or windows whose finds are merged.

Two windows see an object alike where both can see it. So finds A and B of a class from windows V and W are of one
object where they agree in O, the part that both windows show:

    IoU(A ∩ O, B ∩ O) >= 1/2

which for objects wholly in O is the usual rule, and also joins a part at the edge of one window with the whole in the
other, or with the other part of an object larger than any window. Of the finds of one object the best that no edge cuts
is kept; where an edge cuts all of them, their boxes and masks are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vision_ssm.tasks.detection.masks import Patch, joined, patch_of
from vision_ssm.tasks.fitting import window_starts

__all__ = ["Found", "Read", "Testing", "detect", "detect_in_windows", "detect_whole"]

_AGREE = 0.5  # IoU, as NMS has it
_NEAR = 64  # a box that ends within so many parts of a window's side from its edge counts as cut by it


class Found(NamedTuple):
    """What was found in one image; N objects, the best first.

    Attributes:
        boxes: [N, 4] float32, left, top, right, bottom in pixels of the file.
        labels: class indices [N] int64.
        scores: [N] float32 in [0, 1].
        masks: of each; None where the model has none.
        size: (height, width) of the file.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: list[Patch] | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Testing:
    """How objects are found.

    Attributes:
        window: side of the windows that the prepared image is cut into; None takes it whole.
        stride: pixels between windows; None for two thirds of the window.
    """

    __test__ = False  # no class of tests

    window: int | None = None
    stride: int | None = None


Read = Callable[[int, int, int, int], Tensor | None]
"""From (top, left, bottom, right) to that part [C, h, w] of an image, prepared; None where it shows nothing."""


def detect_whole(model: nn.Module, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Found]:
    """Find the objects in prepared images [3, h, w], in pixels of files of (H, W)."""
    results = model(list(images), sizes=list(sizes))
    return [_found(result, size) for result, size in zip(results, sizes, strict=True)]


def detect(model: nn.Module, image: Tensor, size: tuple[int, int], testing: Testing) -> Found:
    """Find the objects in one image.

    Args:
        model: in evaluation mode, see `vision_ssm.models.detector.Detector`.
        image: prepared, [3, h, w].
        size: (H, W) of the file, in whose pixels the results are.
        testing: how.
    """
    height, width = image.shape[1:]
    window = testing.window
    if window is None or (height <= window and width <= window):
        return detect_whole(model, [image], [size])[0]

    def read(top: int, left: int, bottom: int, right: int) -> Tensor:
        return image[:, top:bottom, left:right]

    return _in_file(detect_in_windows(model, read, (height, width), window, testing.stride), (height, width), size)


def detect_in_windows(
    model: nn.Module,
    read: Read,
    size: tuple[int, int],
    window: int,
    stride: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Find the objects of an image that is read window by window.

    Args:
        model: in evaluation mode.
        read: the windows.
        size: (H, W) of the image, in whose pixels the results are.
        window: side of the windows.
        stride: pixels between them; None for two thirds of a window.
        on_progress: called with (rows done, rows in all).
    """
    height, width = size
    parts: list[Found] = []
    places: list[tuple[int, int, int, int]] = []
    for top, left, bottom, right in _windows(height, width, window, stride or max(1, window * 2 // 3)):
        crop = read(top, left, bottom, right)
        if crop is not None:
            found = detect_whole(model, [crop], [(bottom - top, right - left)])[0]
            masks = None if found.masks is None else [mask.shifted(top, left) for mask in found.masks]
            parts.append(found._replace(boxes=found.boxes + found.boxes.new_tensor([left, top] * 2), masks=masks))
            places.append((left, top, right, bottom))
        if right == width and on_progress is not None:
            on_progress(bottom, height)
    if not parts:
        return Found(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), None, size)
    return _merged(parts, places, size, max(2, window // _NEAR))


def _windows(height: int, width: int, window: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    rows, columns = min(window, height), min(window, width)
    for top in window_starts(height, rows, min(stride, rows)):
        for left in window_starts(width, columns, min(stride, columns)):
            yield top, left, top + rows, left + columns


def _found(result: dict[str, Tensor], size: tuple[int, int]) -> Found:
    masks = result.get("masks")
    patches = None if masks is None else [patch_of(mask[0]) for mask in masks]
    boxes, scores = result["boxes"].detach().float().cpu(), result["scores"].detach().float().cpu()
    return Found(boxes, result["labels"].cpu(), scores, patches, (int(size[0]), int(size[1])))


class _Finds(NamedTuple):
    """Finds of all windows: boxes [N, 4], the windows [W, 4] and of which each find is [N], and so on."""

    boxes: NDArray[np.float64]
    windows: NDArray[np.float64]
    of: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    cut: NDArray[np.bool_]
    masks: list[Patch] | None


def _merged(
    parts: Sequence[Found], places: Sequence[tuple[int, int, int, int]], size: tuple[int, int], near: int
) -> Found:
    finds = _collected(parts, places, size, near)
    order = np.lexsort((-finds.scores, finds.cut))  # those that no edge cuts first, the best of them first
    groups = _Groups(finds)
    for index in order.tolist():
        groups.add(index)
    boxes, masks = [], []
    for group in groups.members:
        members = group if finds.cut[group[0]] else group[:1]
        boxes.append([*finds.boxes[members, :2].min(0), *finds.boxes[members, 2:].max(0)])
        if finds.masks is not None:
            masks.append(joined([finds.masks[member] for member in members]))
    scores = torch.tensor([finds.scores[group].max() for group in groups.members], dtype=torch.float32)
    best = scores.argsort(descending=True, stable=True)
    return Found(
        torch.tensor(np.array(boxes), dtype=torch.float32).view(-1, 4)[best],
        torch.tensor([int(finds.labels[group[0]]) for group in groups.members], dtype=torch.int64)[best],
        scores[best],
        None if finds.masks is None else [masks[index] for index in best.tolist()],
        size,
    )


def _collected(
    parts: Sequence[Found], places: Sequence[tuple[int, int, int, int]], size: tuple[int, int], near: int
) -> _Finds:
    counts = [len(part.boxes) for part in parts]
    boxes = torch.cat([part.boxes for part in parts]).double().numpy()
    windows, of = np.array(places, np.float64), np.repeat(np.arange(len(places)), counts)
    inner = windows != np.array([0, 0, size[1], size[0]])  # edges of windows that are none of the image
    cut = (inner[of] & (np.abs(boxes - windows[of]) < near)).any(1)
    with_masks = all(part.masks is not None for part in parts)
    return _Finds(
        boxes,
        windows,
        of,
        torch.cat([part.labels for part in parts]).numpy(),
        torch.cat([part.scores for part in parts]).numpy(),
        cut,
        [mask for part in parts for mask in part.masks or ()] if with_masks else None,
    )


class _Groups:
    """Finds of one object each, in ``members``; one is compared with those of windows that share a part with its own.

    So the time grows with the finds, not with their square: of a large scene there are hundreds of thousands.
    """

    def __init__(self, finds: _Finds) -> None:
        self._finds = finds
        self.members: list[list[int]] = []
        self._owner = np.full(len(finds.boxes), -1)
        self._placed: list[list[int]] = [[] for _ in finds.windows]
        self._near: dict[int, list[int]] = {}

    def add(self, index: int) -> None:
        """Put a find to those of its object, or begin with a new object."""
        at = self._same_object(index)
        if at is None:
            at = len(self.members)
            self.members.append([])
        self.members[at].append(index)
        self._owner[index] = at
        self._placed[self._finds.of[index]].append(index)

    def _same_object(self, index: int) -> int | None:
        """The group whose object a find is another view of; a window shows an object once."""
        finds, own = self._finds, int(self._finds.of[index])
        near = np.array([find for window in self._neighbours(own) for find in self._placed[window]], np.int64)
        free = (finds.labels[near] == finds.labels[index]) & ~np.isin(self._owner[near], self._owner[self._placed[own]])
        near = near[free]
        if not len(near):
            return None
        owners = self._owner[near]
        shared = _common(finds.windows[finds.of[near]], finds.windows[own])
        overlap = _agreement(_common(finds.boxes[near], shared), _common(finds.boxes[index], shared))
        best = overlap.max()
        return int(owners[overlap == best].min()) if best >= _AGREE else None

    def _neighbours(self, window: int) -> list[int]:
        """The other windows that share a part with one."""
        if window not in self._near:
            shared = _common(self._finds.windows, self._finds.windows[window])
            there = np.flatnonzero((shared[:, 2:] > shared[:, :2]).all(1)).tolist()
            self._near[window] = [other for other in there if other != window]
        return self._near[window]


def _common(boxes: Any, others: Any) -> NDArray[np.float64]:
    """The parts that boxes share; without area where they share none."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    return np.concatenate([low, np.maximum(np.minimum(boxes[..., 2:], others[..., 2:]), low)], axis=-1)


def _agreement(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes [N, 4] with others [N, 4]; 0 where one is empty."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1), (others[:, 2:] - others[:, :2]).prod(1)
    both = _common(boxes, others)
    inside = (both[:, 2:] - both[:, :2]).prod(1)
    union = areas[0] + areas[1] - inside
    agreement: NDArray[np.float64] = np.where((areas[0] > 0) & (areas[1] > 0), inside / np.maximum(union, 1e-9), 0)
    return agreement


def _in_file(found: Found, prepared: tuple[int, int], size: tuple[int, int]) -> Found:
    if prepared == size:
        return found._replace(size=size)
    down, across = size[0] / prepared[0], size[1] / prepared[1]
    boxes = found.boxes * found.boxes.new_tensor([across, down] * 2)
    masks = None if found.masks is None else [mask.resized(down, across, *size) for mask in found.masks]
    return found._replace(boxes=boxes, masks=masks, size=size)
