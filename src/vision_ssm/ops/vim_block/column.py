"""Vim blocks one after the other in one call on the CPU, for inference; ``column[a:b]`` of them as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.add_norm.contract import NORMS, NormWeights
from vision_ssm.ops.native import are_plain
from vision_ssm.ops.transforms import transformed
from vision_ssm.ops.vim_block import cpu
from vision_ssm.ops.vim_block.contract import VimBlock
from vision_ssm.ops.vim_block.cpu import Chosen, Described
from vision_ssm.ops.vim_block.op import applies, leaves_to_tiles, takes_stream

__all__ = ["VimColumn"]

MOST_DESCRIBED = 16  # lengths of streams whose description is kept

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


class VimColumn:
    """Blocks that one call runs one after the other, for inference.

    What a call must know of the weights is found out once, and anew where one of them lies elsewhere or has another
    shape or dtype; other values in the same place need nothing.

    Args:
        blocks: all of one form and of the same shapes.
    """

    def __init__(self, blocks: Sequence[VimBlock]) -> None:
        self._blocks = tuple(blocks)
        self._weights = [w for block in blocks for w in block.tensors() if w is not None]
        # The stream's width, a look at the weights, and what was described then: by length, and whether in bfloat16.
        self._known: tuple[int, list[object], dict[tuple[int, bool], Described]] | None = None

    def segments(self, x: Tensor, norm: NormWeights | None = None) -> Callable[..., Tensor] | None:
        """Return a function of (stream, start, stop), for streams like x [B, L, D]: those after blocks[start:stop].

        With a ``norm`` it takes the numbers of rows as well, from the end if negative, and returns these of the stream,
        normalised, [B, rows, D]. What it returns is float32.

        It raises ShapeError where it is given another form of stream, blocks that are not there, or where a weight was
        replaced since.

        None where gradients may be wanted, where not every block could run in one call by itself, or where the blocks
        differ in shapes, dtype or directions, or the norm does in dtype. The function raises BackendError where it is
        called under a transform of torch that was not there when it was made.
        """
        described = None if torch.is_grad_enabled() or not self._blocks else self._look_over(x)
        if described is None or (norm is not None and not self._takes(norm, x.shape[2])):
            return None
        places = [*map(Tensor.data_ptr, self._weights)]

        def run(stream: Tensor, start: int, stop: int, rows: Sequence[int] = ()) -> Tensor:
            if transformed():
                raise BackendError(
                    "a column of Vim blocks that was described outside of torch.func or forward-mode differentiation "
                    "was called inside it, and the kernel would leave the derivative out: call vim_block for each block"
                )
            if start == stop:
                return stream
            if [*map(Tensor.data_ptr, self._weights)] != places:  # the kernel would read what is no more
                raise ShapeError("the blocks' weights were replaced meanwhile: ask for segments again")
            chosen = None if norm is None else Chosen(tuple(range(stream.shape[1])[row] for row in rows), norm)
            return cpu.column(stream, described, start, stop, chosen=chosen)

        return run

    def _look_over(self, x: Tensor) -> Described | None:
        """Return the blocks as the kernel takes them for a stream x, or None where they cannot run on it."""
        first, look, known = self._blocks[0], self._look(), self._known
        if x.dim() == 3 and known is not None and known[:2] == (x.shape[2], look):
            if leaves_to_tiles(first.in_proj.dtype) or not takes_stream(x):
                return None
        else:
            self._known = None
            if not applies(x, first) or not _alike(self._blocks):
                return None
            known = x.shape[2], look, {}
            if all(map(Tensor.is_contiguous, self._weights)):  # else copies are described
                self._known = known
        key, every = (x.shape[1], cpu.multiplies_bfloat16(first)), known[2]
        described = every.get(key)
        if described is None:
            if len(every) == MOST_DESCRIBED:
                every.clear()
            described = every[key] = cpu.describe(x, self._blocks, key[1])
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

    def _takes(self, norm: NormWeights, width: int) -> bool:
        weights = [w for w in (norm.weight, norm.bias) if w is not None]
        fits = all(w.shape == (width,) for w in weights) and norm.kind in NORMS
        return fits and are_plain(weights, self._blocks[0].in_proj.dtype)


def _alike(blocks: Sequence[VimBlock]) -> bool:
    """Tell whether the blocks can follow the first, for which everything was checked; a dozen looks for all of them."""
    first = blocks[0]
    form, dtype = (first.walks_reversed, first.looks_back), first.in_proj.dtype
    if any((block.walks_reversed, block.looks_back) != form or block.norm.kind not in NORMS for block in blocks):
        return False
    for same in zip(*[block.tensors() for block in blocks], strict=True):
        if same[0] is None:
            if any(w is not None for w in same):
                return False
        elif not are_plain(same, dtype) or len(set(map(_shape, same))) != 1:
            return False
    return True
