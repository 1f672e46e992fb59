"""Blocks of gated linear attention one after the other on the CPU, for inference: described once, a call for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.gla_block import cpu
from vision_ssm.ops.gla_block.contract import GlaBlock
from vision_ssm.ops.gla_block.cpu import Described
from vision_ssm.ops.gla_block.op import applies, takes_map
from vision_ssm.ops.transforms import transformed

__all__ = ["GlaColumn"]

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


class GlaColumn:
    """Blocks that run one after the other, for inference.

    What their calls must know of the weights is found out once, and anew where one of them lies elsewhere or has
    another shape or dtype; other values in the same place need nothing.

    Args:
        blocks: of any forms for maps of the same channels.
        dtype: of the maps that they were described for.
    """

    def __init__(self, blocks: Sequence[GlaBlock], dtype: torch.dtype) -> None:
        self._blocks, self._dtype = tuple(blocks), dtype
        self._weights = [w for block in blocks for w in block.tensors() if w is not None]
        self._known: tuple[list[object], list[Described]] | None = None

    def segments(self, x: Tensor) -> Callable[[Tensor, int, int], Tensor] | None:
        """Return a function of (map, start, stop), for maps like x [B, H, W, C]: those after blocks[start:stop].

        None where gradients may be wanted, or where not every block could run in one call by itself. The function
        raises ShapeError where a weight was replaced since, and BackendError where it is called under a transform of
        torch that was not there when it was made.
        """
        described = None if torch.is_grad_enabled() or not self._blocks else self._look_over(x)
        if described is None:
            return None
        places = [*map(Tensor.data_ptr, self._weights)]

        def run(x: Tensor, start: int, stop: int) -> Tensor:
            if transformed():
                raise BackendError(
                    "a column of ViG blocks that was described outside of torch.func or forward-mode differentiation "
                    "was called inside it, and the kernel would leave the derivative out: call gla_block for each block"
                )
            if [*map(Tensor.data_ptr, self._weights)] != places:  # the kernel would read what is no more
                raise ShapeError("the blocks' weights were replaced meanwhile: ask for segments again")
            for block in described[start:stop]:
                x = cpu.run(x, block)
            return x

        return run

    def _look_over(self, x: Tensor) -> list[Described] | None:
        """Return the blocks as the kernel takes them, or None where they cannot run on a map x."""
        look = self._look()
        if self._known is not None and self._known[0] == look:
            return self._known[1] if x.dtype == self._dtype and takes_map(x, self._weights[:1]) else None
        self._known = None
        if x.dtype != self._dtype or not all(applies(x, block) for block in self._blocks):
            return None
        described = [*map(cpu.describe, self._blocks)]
        if all(map(Tensor.is_contiguous, self._weights)):  # else copies are described
            self._known = look, described
        return described

    def _look(self) -> list[object]:
        """Return all that is asked of the weights after the first time; only the kernel reads their values."""
        weights = self._weights
        return [
            *map(Tensor.data_ptr, weights),
            *map(_shape, weights),
            *map(_dtype, weights),
            *map(Tensor.is_contiguous, weights),
            *map(Tensor.is_neg, weights),
        ]
