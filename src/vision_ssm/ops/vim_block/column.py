"""Vim blocks one after the other in one call on the CPU, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from vision_ssm.ops.add_norm.contract import NORMS, NormWeights
from vision_ssm.ops.native import are_plain
from vision_ssm.ops.vim_block import cpu as cpu_block
from vision_ssm.ops.vim_block.cpu import Branch, Chosen, Described
from vision_ssm.ops.vim_block.op import branch_applies, leaves_to_tiles, takes_stream

__all__ = ["ResidualColumn"]

MOST_DESCRIBED = 16  # lengths of streams whose description is kept

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


class _Found:
    """What was found out about blocks: the width of their stream, a look at their weights, and their descriptions."""

    def __init__(self, width: int, look: list[object]) -> None:
        self.width = width
        self.look = look
        self.described: dict[tuple[int, bool], Described] = {}


class ResidualColumn:
    """Blocks that one call runs one after the other, for inference.

    What a call must know of the weights is found out once, and anew where one of them lies elsewhere or has another
    shape or dtype; other values in the same place need nothing.

    Args:
        branches: the blocks'.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = tuple(branches)
        self._weights = [w for branch in branches for w in branch.weights.in_order() if w is not None]
        self._found: _Found | None = None

    def try_run(self, x: Tensor, rows: tuple[int, ...] = (), norm: NormWeights | None = None) -> Tensor | None:
        """Return the stream x [B, L, D] after the blocks.

        With a ``norm``, the chosen ``rows`` of it, normalised, instead: [B, rows, D]. Rows may be counted from the end.
        Either is float32.

        None where gradients may be wanted, where not every block could run in one call by itself, or where the blocks
        differ in shapes, dtype or directions, or the norm does in dtype.
        """
        if torch.is_grad_enabled() or not self._branches:
            return None
        runs, found = self._look_over(x)
        if not runs:
            return None
        chosen = None
        if norm is not None:
            if not self._takes(norm, x.shape[2]):
                return None
            chosen = Chosen(tuple(range(x.shape[1])[row] for row in rows), norm)
        return cpu_block.column(x, self._describe(x, found), chosen=chosen)

    def _look_over(self, x: Tensor) -> tuple[bool, _Found | None]:
        """Tell whether all blocks can run, and return what was found out about them, if it may be kept."""
        first, found = self._branches[0], self._found
        if found is not None and x.dim() == 3 and x.shape[2] == found.width and found.look == self._look():
            return not leaves_to_tiles(first.weights.in_proj.dtype) and takes_stream(x), found
        self._found = found = None
        if not branch_applies(x, first) or not _alike(self._branches):
            return False, None
        if all(map(Tensor.is_contiguous, self._weights)):  # else copies are described
            self._found = found = _Found(x.shape[2], self._look())
        return True, found

    def _look(self) -> list[object]:
        """Return all that is asked of the weights after the first time; only the kernel reads their values."""
        weights = self._weights
        return [
            *map(Tensor.data_ptr, weights),
            *map(_shape, weights),
            *map(_dtype, weights),
            *map(Tensor.is_contiguous, weights),
        ]

    def _describe(self, x: Tensor, found: _Found | None) -> Described:
        half = cpu_block.multiplies_bfloat16(self._branches[0].weights)
        if found is None:
            return cpu_block.describe(x, self._branches, half)
        key = (x.shape[1], half)
        described = found.described.get(key)
        if described is None:
            if len(found.described) == MOST_DESCRIBED:
                found.described.clear()
            described = found.described[key] = cpu_block.describe(x, self._branches, half)
        return described

    def _takes(self, norm: NormWeights, width: int) -> bool:
        weights = [w for w in (norm.weight, norm.bias) if w is not None]
        fits = all(w.shape == (width,) for w in weights) and norm.kind in NORMS
        return fits and are_plain(weights, self._branches[0].weights.in_proj.dtype)


def _alike(branches: Sequence[Branch]) -> bool:
    """Tell whether the blocks can follow the first, for which everything was checked; a dozen looks for all of them."""
    first = branches[0]
    walks, looks, dtype = first.walks_reversed, first.looks_back, first.weights.in_proj.dtype
    if any(branch.walks_reversed != walks or branch.looks_back != looks for branch in branches):
        return False
    for same in zip(*[branch.weights.in_order() for branch in branches], strict=True):
        if same[0] is None:
            if any(w is not None for w in same):
                return False
        elif not are_plain(same, dtype) or len(set(map(_shape, same))) != 1:
            return False
    return True
