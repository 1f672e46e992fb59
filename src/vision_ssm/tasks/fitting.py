"""To which size an image is resized that keeps its shape, and into which windows it is cut. No torch here."""

from __future__ import annotations

from pathlib import Path

from vision_ssm.errors import notify

__all__ = ["WHOLE", "fitted_size", "window_of_scene", "window_starts"]

WHOLE = 2**24
"""Pixels of a scene that is taken in one piece where nothing is said of windows: 4,096 x 4,096."""

_LEAST = 256  # side of such windows


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


def window_of_scene(path: Path, size: tuple[int, int], trained: tuple[int, ...]) -> int | None:
    """Return the side of the windows in which a scene is read of which nobody said how, and tell.

    Args:
        path: of the scene.
        size: its (height, width).
        trained: sides of the images of training.

    Returns:
        None where it is small enough to be taken in one piece.
    """
    if size[0] * size[1] <= WHOLE:
        return None
    side = max(_LEAST, *trained)
    notify(
        f"{path} has {size[1]:,} x {size[0]:,} pixels, more than are taken in one piece unless asked for: it is read "
        f"in windows of {side}. --window says otherwise; none takes it whole."
    )
    return side
