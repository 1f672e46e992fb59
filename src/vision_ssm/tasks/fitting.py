"""To which size an image is resized that keeps its shape, and into which windows it is cut. No torch here."""

from __future__ import annotations

__all__ = ["fitted_size", "window_starts"]


def fitted_size(height: int, width: int, short: float, long: float) -> tuple[int, int]:
    """Return the (height, width) to which an image is resized: no side above its limit, one of them at it.

    s = min(long / max(height, width), short / min(height, width)); each side becomes int(side · s + 0.5), at least 1.
    Source: `imrescale` of mmcv 2.1.0.
    """
    s = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * s + 0.5)), max(1, int(width * s + 0.5))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin on an axis: every ``stride``, the last one moved back inside. Source: mmsegmentation."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - window), 0) for index in range(count)]
