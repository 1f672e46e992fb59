"""Vim blocks one after the other in one call on the CPU, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from vision_ssm.ops import cpu_ssm
from vision_ssm.ops.branch import applicable, leaves_to_tiles, stream_backend
from vision_ssm.ops.cpu import CpuBackend
from vision_ssm.ops.cpu_ssm import NORMS, Branch, Chosen, Described, NormWeights
from vision_ssm.ops.native import are_plain

__all__ = ["ResidualColumn"]

MOST_DESCRIBED = 16  # lengths of streams whose description is kept

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


class ResidualColumn:
    """Blocks that one call runs one after the other, for inference.

    What a call must know of the weights is found out once, and anew where one of them lies elsewhere or has another
    shape or dtype; other values in the same place need nothing. Looking takes Python as long as a token or two, finding
    out as long as twenty.

    Args:
        branches: the blocks'.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = tuple(branches)
        self._weights = [w for branch in branches for w in branch.weights.in_order() if w is not None]
        self._seen: list[object] | None = None
        self._described: dict[tuple[object, ...], Described] = {}

    def try_run(self, x: Tensor, rows: tuple[int, ...] = (), norm: NormWeights | None = None) -> Tensor | None:
        """Return the stream x [B, L, D] after the blocks.

        With a ``norm``, the chosen ``rows`` of it, normalised, instead: [B, rows, D]. Rows may be counted from the end.
        Either is float32.

        None where gradients may be wanted, where not every block could run in one call by itself, or where the blocks
        differ in shapes, dtype or directions, or the norm does in dtype.
        """
        if torch.is_grad_enabled() or not self._branches:
            return None
        backend = self._backend(x)
        if backend is None:
            return None
        chosen = None
        if norm is not None:
            if not self._takes(norm, x.shape[2]):
                return None
            chosen = Chosen(tuple(range(x.shape[1])[row] for row in rows), norm)
        return cpu_ssm.column(x, self._describe(x), backend.isa, chosen=chosen)

    def _backend(self, x: Tensor) -> CpuBackend | None:
        """Return the backend that runs all blocks, or None; looks closely where it has not before."""
        first = self._branches[0]
        if self._seen is not None and x.dim() == 3 and x.shape[2] == len(first.weights.norm.weight):
            if leaves_to_tiles(first.weights.in_proj.dtype):
                return None
            if self._look() == self._seen:
                return stream_backend(x)
        self._seen = None
        self._described.clear()
        backend = applicable(x, first)
        if backend is None or not _alike(self._branches):
            return None
        if all(map(Tensor.is_contiguous, self._weights)):  # else copies are described
            self._seen = self._look()
        return backend

    def _look(self) -> list[object]:
        """Return all that is asked of the weights after the first time; only the kernel reads their values."""
        weights = self._weights
        return [
            *map(Tensor.data_ptr, weights),
            *map(_shape, weights),
            *map(_dtype, weights),
            *map(Tensor.is_contiguous, weights),
        ]

    def _describe(self, x: Tensor) -> Described:
        half = cpu_ssm.multiplies_bfloat16(self._branches[0].weights)
        if self._seen is None:
            return cpu_ssm.describe(x, self._branches, half)
        key = (x.shape[1], half)
        described = self._described.get(key)
        if described is None:
            if len(self._described) == MOST_DESCRIBED:
                self._described.clear()
            described = self._described[key] = cpu_ssm.describe(x, self._branches, half)
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
