"""What every form of a Vim block is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vision_ssm.ops.add_norm.contract import NormWeights
from vision_ssm.ops.ssm.contract import SsmWeights

__all__ = ["WEIGHTS", "VimBlock"]


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
