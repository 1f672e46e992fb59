"""From an image of any size to a class per pixel: the whole image or windows, several scales, mirror images.

    logits at stride 4 -> up to the size of the input -> up to the size of the file -> argmax

The two steps are the published rule; one step would give other classes at edges. Everything after the backbone happens
in strips of rows, so that logits of all classes are never in memory at the size of the image: windows are computed row
by row as strips ask for them, and what is kept is as wide as the image and about as high as a window. Over several
scales and mirror images probabilities are averaged, as published; each of them keeps that much, or its own maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vision_ssm.errors import ConfigError
from vision_ssm.layers.resize import resize, resize_rows, source_rows
from vision_ssm.layers.strips import Patches
from vision_ssm.layers.uper_head import Merged, UPerHead
from vision_ssm.models.segmentor import Segmentor, patch_side
from vision_ssm.tasks.fitting import window_starts
from vision_ssm.tasks.segmentation.masks import IGNORE

__all__ = ["ClassMap", "Testing", "image_logits", "require_window", "segment", "window_logits"]

_VALUES = 2**26  # numbers that a strip may take at a time
_LEAST_ROWS = 32  # of a strip at stride 4, of which four are decoded twice


class ClassMap(NamedTuple):
    """What was found in one image.

    Attributes:
        classes: [H, W] at the size of the file, uint8; 255 where it holds no data.
        confidence: mean over the pixels with data of the probability of their class, a scalar; not finite where the
            logits are not, and None without such pixels.
    """

    classes: Tensor
    confidence: Tensor | None


@dataclass(frozen=True)
class Testing:
    """How images are segmented.

    Attributes:
        window: side of the windows that the prepared image is cut into; None takes it whole.
        stride: pixels between windows; None for two thirds of the window.
        tapered: overlapping windows are weighted less towards their edges, instead of their plain mean.
        scales: the image is resized by each of these.
        flips: and taken mirrored as well.
    """

    __test__ = False  # no class of tests

    window: int | None = None
    stride: int | None = None
    tapered: bool = True
    scales: tuple[float, ...] = (1.0,)
    flips: bool = False


class Logits(Protocol):
    """Logits of one image, at the size of its file, in rows."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return [1, classes, stop - start, W]."""


@dataclass(frozen=True)
class _Decoded:
    """Logits decoded a strip at a time from the maps of the whole input."""

    head: UPerHead
    merged: Merged
    input_size: tuple[int, int]
    size: tuple[int, int]

    def rows(self, start: int, stop: int) -> Tensor:
        height = self.merged.finest.shape[2]
        first, last = source_rows(start, stop, self.input_size[0], self.size[0])
        low, high = source_rows(first, last, height, self.input_size[0])
        logits = self.head.rows(self.merged, low, high).float()
        middle = resize_rows(logits, self.input_size, first, last, top=low, height=height)
        return resize_rows(middle, self.size, start, stop, top=first, height=self.input_size[0])


class _Joined:
    """Logits of the whole input, joined from windows as they are asked for: from top to bottom, once.

    Args:
        blocks: of `window_logits`, as wide as the input.
        height: of the input.
        size: (H, W) of the file.
    """

    def __init__(self, blocks: Iterator[tuple[int, int, Tensor]], height: int, size: tuple[int, int]) -> None:
        self._blocks, self._height, self._size = blocks, height, size
        self._kept: list[tuple[int, Tensor]] = []  # their first rows
        self._bottom = 0

    def rows(self, start: int, stop: int) -> Tensor:
        first, last = source_rows(start, stop, self._height, self._size[0])
        self._kept = [(top, block) for top, block in self._kept if top + block.shape[2] > first]
        while self._bottom < last:
            top, _, block = next(self._blocks)
            self._kept.append((top, block))
            self._bottom = top + block.shape[2]
        parts = [block[:, :, max(first - top, 0) : last - top] for top, block in self._kept]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return resize_rows(logits, self._size, start, stop, top=first, height=self._height)


@dataclass(frozen=True)
class _Mirrored:
    of: Logits

    def rows(self, start: int, stop: int) -> Tensor:
        return self.of.rows(start, stop).flip(3)


def segment(
    model: Segmentor, x: Tensor | Patches, size: tuple[int, int], testing: Testing, valid: Tensor | None = None
) -> ClassMap:
    """Segment one image.

    Args:
        model: in evaluation mode.
        x: prepared image [1, C, h, w]; or patches of an image at its own ``size``, which are taken whole.
        size: (H, W) of the file, which the classes are for.
        testing: how.
        valid: bool [H, W], where the file holds data; None for everywhere.

    Raises:
        ConfigError: the windows are smaller than a patch of the model.
    """
    require_window(model, testing)
    if isinstance(x, Patches):
        found: list[Logits] = [_whole(model, x, size, size)]
    else:
        images = list(_resized(x, testing.scales))
        found = [_logits(model, image, size, testing) for image in images]
        if testing.flips:
            found += [_Mirrored(_logits(model, image.flip(3), size, testing)) for image in images]
    return _classified(found, size, model, valid)


def _resized(image: Tensor, scales: Sequence[float]) -> Iterator[Tensor]:
    height, width = image.shape[2:]
    for scale in scales:
        yield resize(image, (max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)))


def _logits(model: Segmentor, image: Tensor, size: tuple[int, int], testing: Testing) -> Logits:
    height, width = image.shape[2:]
    if testing.window is None or (height <= testing.window and width <= testing.window):
        return _whole(model, image, (height, width), size)

    def of_window(top: int, left: int, rows: int, columns: int) -> Tensor:
        return _whole_logits(model, image[:, :, top : top + rows, left : left + columns])

    return _Joined(window_logits(of_window, (height, width), testing, columns=width), height, size)


def _whole(model: Segmentor, x: Tensor | Patches, input_size: tuple[int, int], size: tuple[int, int]) -> Logits:
    return _Decoded(model.decode_head, model.decode_head.merge(model.maps(x, input_size)), input_size, size)


def _whole_logits(model: Segmentor, crop: Tensor) -> Tensor:
    height, width = crop.shape[2:]
    return resize(model.decode_head(model.maps(crop, (height, width))), (height, width)).float()


def image_logits(model: Segmentor, crop: Tensor, testing: Testing) -> Tensor:
    """Return logits [1, classes, h, w] of a prepared image [1, C, h, w] taken whole, over all scales and mirror images.

    Of several they are the logarithm of the mean of their probabilities.
    """
    size = int(crop.shape[2]), int(crop.shape[3])
    if testing.scales == (1.0,) and not testing.flips:
        return _whole_logits(model, crop)
    probabilities = crop.new_zeros(())
    for image in _resized(crop, testing.scales):
        probabilities = probabilities + resize(_whole_logits(model, image), size).softmax(1)
        if testing.flips:
            probabilities = probabilities + resize(_whole_logits(model, image.flip(3)), size).flip(3).softmax(1)
    return (probabilities / (len(testing.scales) * (1 + testing.flips))).clamp_min(1e-30).log()


def _classified(found: Sequence[Logits], size: tuple[int, int], model: Segmentor, valid: Tensor | None) -> ClassMap:
    height, width = size
    values = width * max(model.num_classes, model.decode_head.joined_channels // 16)
    step = max(4 * _LEAST_ROWS, _VALUES // values)
    classes = torch.empty(size, dtype=torch.uint8, device=next(model.parameters()).device)
    certain: list[Tensor] = []
    for start in range(0, height, step):
        stop = min(start + step, height)
        logits = [each.rows(start, stop)[0] for each in found]
        probabilities = logits[0].softmax(0)
        for each in logits[1:]:
            probabilities = probabilities + each.softmax(0)
        # Of a single image the classes are those of the logits: a softmax makes ties of close ones.
        best = logits[0].argmax(0) if len(logits) == 1 else probabilities.argmax(0)
        sure = probabilities.amax(0).double()
        if valid is not None:
            known = valid[start:stop].to(best.device)
            best, sure = best.where(known, IGNORE), sure.where(known, 0.0)
        certain.append(sure.sum() / len(logits))
        classes[start:stop] = best.to(torch.uint8)
    count = height * width if valid is None else int(valid.sum())
    return ClassMap(classes, torch.stack(certain).sum() / count if count else None)


# ------------------------------------------------------------------------------------------------------------ windows


def require_window(model: Segmentor, testing: Testing) -> None:
    """Raise ConfigError for windows that are smaller than a patch of the model."""
    patch = patch_side(model.inner)
    if testing.window is not None and testing.window < patch:
        raise ConfigError(
            f"a window must be at least as large as the model's patches, got {testing.window} and {patch}."
        )


def window_logits(
    logits_of: Callable[[int, int, int, int], Tensor],
    size: tuple[int, int],
    testing: Testing,
    *,
    columns: int,
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield logits of an image cut into windows as soon as no window is left that covers them.

    Args:
        logits_of: from (top, left, rows, columns) to the logits [1, classes, rows, columns] of that part of the image.
        size: (height, width) of the image.
        testing: window, stride and blending.
        columns: so many columns are worked on at a time, which bounds the memory; windows at the border between two
            such parts are computed for both.

    Yields:
        (top, left, logits [1, classes, r, c]) that cover the image without overlap, each part of ``columns`` from top
        to bottom.
    """
    window = testing.window or max(size)
    height, width = min(window, size[0]), min(window, size[1])
    stride = testing.stride or max(window * 2 // 3, 1)
    tops, lefts = window_starts(size[0], height, stride), window_starts(size[1], width, stride)
    weights = torch.outer(*(_taper(side) if testing.tapered else torch.ones(side) for side in (height, width)))
    for begin in range(0, size[1], columns):
        end = min(begin + columns, size[1])
        inside = [left for left in lefts if left < end and left + width > begin]
        yield from _rows_of_windows(logits_of, size[0], tops, inside, weights, begin, end)


def _rows_of_windows(
    logits_of: Callable[[int, int, int, int], Tensor],
    height: int,
    tops: Sequence[int],
    lefts: Sequence[int],
    weights: Tensor,
    begin: int,
    end: int,
) -> Iterator[tuple[int, int, Tensor]]:
    rows, columns = weights.shape
    total: Any = None  # of the shape of the first window's logits
    weight = torch.zeros(rows, end - begin)
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            logits = logits_of(top, left, rows, columns)
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], rows, end - begin)
                weights, weight = weights.to(logits.device), weight.to(logits.device)
            low, high = max(left, begin), min(left + columns, end)
            part = slice(low - left, high - left)
            total[..., low - begin : high - begin] += logits[..., part] * weights[:, part]
            weight[:, low - begin : high - begin] += weights[:, part]
        done = following - top
        yield top, begin, total[:, :, :done] / weight[:done]
        for sums in (total[0], weight[None]):
            sums[:, : rows - done] = sums[:, done:].clone()
            sums[:, rows - done :] = 0


def _taper(side: int) -> Tensor:
    """Weights that fall linearly from the middle of a window to its edges, and are positive everywhere."""
    places = torch.arange(side) + 0.5
    return torch.minimum(places, side - places)
