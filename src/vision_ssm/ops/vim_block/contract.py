"""What every form of a Vim block is given, and which shapes fit together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.ops.add_norm.contract import NormWeights
from vision_ssm.ops.gate import show
from vision_ssm.ops.ssm.contract import SsmWeights

__all__ = ["OPTIONAL", "WEIGHTS", "VimBlock", "misfit_of"]


class VimBlock(NamedTuple):
    """One block: what it learns, and its form.

    Attributes:
        norm: over D channels.
        in_proj: [2E, D], to x and z.
        ssm: over E channels, with its convolution's taps and biases.
        out_proj: [D, E].
        gamma: a factor per output channel, [D], or None.
        scale: a factor of everything that the block adds.
        walks_reversed: of each of the K directions, whether it walks from the last token.
        looks_back: of each set of taps, whether "back" means towards the end of the sequence.
    """

    norm: NormWeights
    in_proj: Tensor
    ssm: SsmWeights
    out_proj: Tensor
    gamma: Tensor | None
    scale: float
    walks_reversed: tuple[bool, ...]
    looks_back: tuple[bool, ...]

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return what it learns, in the order of WEIGHTS."""
        return (*self.ssm, self.norm.weight, self.norm.bias, self.in_proj, self.out_proj, self.gamma)

    def holding(self, tensors: Sequence[Any]) -> VimBlock:
        """Return a block of the same form that has learnt these, in the order of WEIGHTS."""
        *ssm, weight, bias, in_proj, out_proj, gamma = tensors
        norm = self.norm._replace(weight=weight, bias=bias)
        return self._replace(norm=norm, in_proj=in_proj, ssm=SsmWeights(*ssm), out_proj=out_proj, gamma=gamma)


WEIGHTS = (*SsmWeights._fields, "norm weight", "norm bias", "in_proj", "out_proj", "gamma")
OPTIONAL = ("norm bias", "gamma")


@lru_cache(maxsize=1024)
def misfit_of(width: int, shapes: tuple[torch.Size | None, ...], directions: int, sets: int) -> str | None:
    """Return what does not fit in the shapes of a block's tensors, or None.

    Args:
        width: D, of the stream.
        shapes: in the order of WEIGHTS.
        directions: K, walks.
        sets: of taps; all of the SSM's but A_log come in as many.
    """
    found = dict(zip(WEIGHTS, shapes, strict=True))
    a_log, dt_proj, conv = found["A_log"], found["dt_proj_weight"], found["conv_weight"]
    if directions < 1 or sets not in (1, directions):
        return (
            f"a Vim block walks in one direction at least, with one set of taps or one each, got {directions}, {sets}"
        )
    if a_log is None or len(a_log) != 3 or dt_proj is None or len(dt_proj) != 3 or 0 in (*a_log, width):
        return (
            f"a Vim block takes A_log [{directions}, C, N] and dt_proj_weight [1 or {directions}, C, R] with a channel "
            f"and a state at least, got {show(a_log)} and {show(dt_proj)} for a stream of {width}"
        )
    if conv is None or len(conv) != 3 or conv[2] < 1:
        return f"a Vim block needs a convolution [{sets}, C, taps], got {show(conv)}"
    (_, inner, states), rank, taps = a_log, dt_proj[2], conv[2]
    expected = (
        *((directions, inner, states), (sets, inner), (sets, rank + 2 * states, inner), (sets, inner, rank)),
        *((sets, inner), (sets, inner, taps), (sets, inner)),
        *((width,), (width,), (2 * inner, width), (width, inner), (width,)),
    )
    for (name, shape), wanted in zip(found.items(), expected, strict=True):
        if (shape is not None or name not in OPTIONAL) and shape != wanted:
            return f"{name} must be {list(wanted)} to fit the stream and A_log, got {show(shape)}"
    return None
