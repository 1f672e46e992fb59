"""Boxes [N, 4] as (x1, y1, x2, y2) in pixels, and the deltas that move one onto another.

    dx = w_x (X - x) / w,  dy = w_y (Y - y) / h                   x, y, w, h: centre and sides of the box
    dw = w_w ln(W / w),    dh = w_h ln(H / h)                     X, Y, W, H: those of the one that it is moved onto

Source: R-CNN, arXiv:1311.2524, appendix C; the weights, Fast R-CNN's code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["apply_deltas", "clipped", "deltas_between", "has_area", "rescaled"]

LARGEST = math.log(1000 / 16)
"""Of dw / w_w and dh / w_h: a box grows to at most 62.5 times its side."""


def deltas_between(boxes: Tensor, onto: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the deltas [N, 4] that move boxes [N, 4] onto others [N, 4]."""
    (centre, sides), (aim, aim_sides) = _centred(boxes), _centred(onto)
    deltas = torch.cat([(aim - centre) / sides, (aim_sides / sides).log()], dim=1)
    return deltas * deltas.new_tensor(weights)


def apply_deltas(deltas: Tensor, boxes: Tensor, weights: Sequence[float], *, bounded_below: bool) -> Tensor:
    """Return boxes [N, K, 4] moved by deltas [N, K, 4] from boxes [N, 4].

    ``bounded_below`` bounds how far a box shrinks as `LARGEST` bounds how far it grows.
    """
    centre, sides = (part[:, None] for part in _centred(boxes))
    steps = deltas.to(boxes.dtype) / boxes.new_tensor(weights)
    growth = steps[..., 2:].clamp(-LARGEST if bounded_below else None, LARGEST)
    aim, half = centre + steps[..., :2] * sides, 0.5 * sides * growth.exp()
    return torch.cat([aim - half, aim + half], dim=-1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes [..., 4] cut to an image of size (H, W): x to 0 ... W, y to 0 ... H."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def has_area(boxes: Tensor) -> Tensor:
    """Tell of boxes [N, 4] which are wider and higher than nothing."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def rescaled(boxes: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Return boxes [N, 4] of an image of ``size`` (H, W) in the pixels of one resized ``to`` (H, W)."""
    if size == to:
        return boxes
    return clipped(boxes / boxes.new_tensor([size[1] / to[1], size[0] / to[0]] * 2), to)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * sides, sides
