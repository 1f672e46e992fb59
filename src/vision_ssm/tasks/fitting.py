"""To which size an image is resized that keeps its shape. No torch here."""

from __future__ import annotations

__all__ = ["fitted_size"]


def fitted_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Return the (height, width) to which an image is resized: no side above its limit, one of them at it.

    s = min(long / max(height, width), short / min(height, width)); each side becomes int(side · s + 0.5), at least 1.
    Source: `imrescale` of mmcv 2.1.0.
    """
    s = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * s + 0.5)), max(1, int(width * s + 0.5))
