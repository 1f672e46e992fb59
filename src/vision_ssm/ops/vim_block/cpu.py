"""Vim blocks in C++, one or a column of them: their weights, and the calls of the kernels (csrc/vim_block/)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS, NormWeights
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, held_by_kernel, mirrors
from vision_ssm.ops.scan.contract import CHUNK
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.ssm.cpu import _Ssm, _template
from vision_ssm.ops.traversal import Traversal
from vision_ssm.ops.vim_block.contract import WEIGHTS, VimBlock, misfit_of
from vision_ssm.ops.vim_block.recycled import recycler

__all__ = [
    "BlockArgument",
    "Chosen",
    "Described",
    "Kept",
    "column",
    "describe",
    "forward",
    "leave_in",
    "multiplies_bfloat16",
]


class Kept(NamedTuple):
    """What the forward pass of a block leaves for the backward pass.

    ``sums`` [B, L, C] are those of the directions before the gate; ``xz`` [B, L, 2C] is what in_proj yields, unless
    that is to be made again; ``states`` [B, K, chunks, N, C] are those before every chunk of steps; ``projected``
    [B, K, L, R + 2N] is what x_proj yields.
    """

    sums: Tensor
    xz: Tensor | None
    states: Tensor
    projected: Tensor

    @classmethod
    def empty(cls, stream: Tensor, weights: SsmWeights, *, xz: bool) -> Kept:
        """Make room for a stream [B, L, D]."""
        (batch, tokens, _), (directions, channels, states) = stream.shape, weights.A_log.shape
        outputs = weights.x_proj_weight.shape[1]

        def room(*shape: int) -> Tensor:
            return recycler.take(math.prod(shape)).view(shape)

        return cls(
            room(batch, tokens, channels),
            room(batch, tokens, 2 * channels) if xz else None,
            room(batch, directions, -(-tokens // CHUNK), states, channels),
            room(batch, directions, tokens, outputs),
        )


@mirrors("vssm_vim_block")
class BlockArgument(ctypes.Structure):
    """A block in the kernel's form (vssm_vim_block)."""

    _fields_ = (
        ("ssm", _Ssm),
        ("width", ctypes.c_int64),
        ("norm", ctypes.c_int32),
        *((n, ctypes.c_float) for n in ("eps", "scale")),
        *((n, ctypes.c_void_p) for n in ("norm_weight", "norm_bias", "in_proj", "out_proj", "gamma")),
        *((n, TensorArgument) for n in ("sums", "xz")),
        *((n, ctypes.c_void_p) for n in ("saved", "projected")),
    )


@mirrors("vssm_vim_blocks")
class _Column(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "count", "chosen")),
        *((n, ctypes.c_int32) for n in ("threads", "isa")),
        ("branches", ctypes.POINTER(ctypes.POINTER(BlockArgument))),
        *((n, TensorArgument) for n in ("stream", "out")),
        ("rows", ctypes.POINTER(ctypes.c_int64)),
        ("norm", ctypes.c_int32),
        ("eps", ctypes.c_float),
        *((n, ctypes.c_void_p) for n in ("norm_weight", "norm_bias")),
        ("normed", TensorArgument),
    )


class Described(NamedTuple):
    """Blocks of equal sizes, dtypes and directions as the kernel takes them, for streams [any B, L, D] of one L.

    ``held`` are their weights of one ``dtype``, contiguous; ``blocks`` their parts of a call, in which ``pointers``
    point.
    """

    dtype: torch.dtype
    held: list[Any]
    blocks: list[BlockArgument]
    pointers: ctypes.Array[Any]


class Chosen(NamedTuple):
    """Tokens of the last block's result that are wanted, and the norm that they go through."""

    rows: tuple[int, ...]
    norm: NormWeights


def forward(stream: Tensor, block: VimBlock, half: bool, keep: Kept | None = None) -> Tensor:
    """Return the stream [B, L, D] after a block; what a backward pass needs is written into ``keep``, if given."""
    described = describe(stream, [block], half)
    if keep is not None:
        own = BlockArgument.from_buffer_copy(described.blocks[0])
        leave_in(own, keep, described.held)
        described = Described(described.dtype, described.held, [own], _pointers([own]))
    return column(stream, described, 0, 1)


def column(stream: Tensor, blocks: Described, start: int, stop: int, *, chosen: Chosen | None = None) -> Tensor:
    """Return the stream [B, L, D] after blocks[start:stop], or of it what is ``chosen``, [B, rows, D]."""
    own: Any = blocks.pointers
    if (start, stop) != (0, len(blocks.blocks)):
        own = _pointers(blocks.blocks[start:stop])
    if not 0 <= start < stop <= len(blocks.blocks):
        raise ShapeError(f"blocks {start} to {stop} are none of the {len(blocks.blocks)} of the column")
    first = blocks.blocks[0]
    shape = (stream.shape[0], 1, first.ssm.tokens, first.width)
    call = _Column(batch=stream.shape[0], count=stop - start, threads=torch.get_num_threads(), isa=native.ISA)
    call.branches = own
    kernel = KernelCall(call, [blocks, own])
    out = torch.empty(stream.shape, dtype=torch.float32, device="cpu")
    kernel.set(shape, torch.float32, stream=stream, out=out)
    if chosen is None:
        kernel.run("vssm_vim_blocks_forward")
        return out
    norm, count, dtype = chosen.norm, len(chosen.rows), blocks.dtype
    if not all(0 <= row < first.ssm.tokens for row in chosen.rows):
        raise ShapeError(f"rows {list(chosen.rows)} are not all among the {first.ssm.tokens} of the stream")
    call.chosen, call.rows = count, (ctypes.c_int64 * count)(*chosen.rows)
    call.norm, call.eps = NORMS.index(norm.kind), norm.eps
    call.norm_weight = kernel.pointer("norm weight", norm.weight, shape[3:], dtype)
    call.norm_bias = kernel.pointer_or_none("norm bias", norm.bias, shape[3:], dtype)
    normed = torch.empty(shape[0], count, shape[3], dtype=torch.float32, device="cpu")
    kernel.set((shape[0], 1, count, shape[3]), torch.float32, normed=normed)
    kernel.run("vssm_vim_blocks_forward")
    return normed


def describe(stream: Tensor, blocks: Sequence[VimBlock], half: bool) -> Described:
    """Describe blocks to the kernel for streams of that length; ``half`` lets products take bfloat16.

    Raises:
        ShapeError: the blocks' weights do not fit the stream, the directions or each other, or are no memory of one
            dtype.
    """
    first = blocks[0]
    weights = [w for block in blocks for w in block.tensors()]
    held: list[Any] = held_by_kernel(WEIGHTS * len(blocks), weights, first.in_proj.dtype)
    shapes = tuple([None if w is None else w.shape for w in held])
    form = shapes[: len(WEIGHTS)], first.walks_reversed, first.looks_back
    if shapes != form[0] * len(blocks) or any((b.walks_reversed, b.looks_back) != form[1:] for b in blocks):
        raise ShapeError("the blocks of a column must have the same shapes, directions and sets of taps")
    return Described(
        first.in_proj.dtype,
        held,
        *_column_template(
            tuple([None if w is None else w.data_ptr() for w in held]),
            form[0],
            DTYPES[first.in_proj.dtype],
            DTYPES[torch.bfloat16 if half else torch.float32],
            tuple([(block.norm.kind, block.norm.eps, block.scale) for block in blocks]),
            first.walks_reversed,
            first.looks_back,
            *stream.shape[1:],
        ),
    )


def multiplies_bfloat16(block: VimBlock) -> bool:
    """Tell whether a block's products may take bfloat16: its weights are, or autocast says so."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return block.in_proj.dtype == torch.bfloat16


def leave_in(block: BlockArgument, keep: Kept, kept: list[Any]) -> None:
    """Tell the kernel where what the forward pass leaves lies; ``kept`` must outlive the call."""
    kernel, ssm = KernelCall(block, kept), block.ssm
    batch = keep.sums.shape[0]
    kernel.set((batch, 1, ssm.tokens, ssm.channels), torch.float32, sums=keep.sums)
    kernel.set((batch, 1, ssm.tokens, 2 * ssm.channels), torch.float32, xz=keep.xz)
    states = (batch, ssm.directions, -(-ssm.tokens // CHUNK), ssm.states, ssm.channels)
    projected = (batch, ssm.directions, ssm.tokens, ssm.rank + 2 * ssm.states)
    block.saved = kernel.pointer("states", keep.states, states)
    block.projected = kernel.pointer("projected", keep.projected, projected)


@lru_cache(maxsize=256)
def _column_template(
    pointers: tuple[int | None, ...],
    shapes: tuple[Any, ...],
    dtype: int,
    product_dtype: int,
    blocks: tuple[tuple[str, float, float], ...],
    walks_reversed: tuple[bool, ...],
    looks_back: tuple[bool, ...],
    tokens: int,
    width: int,
) -> tuple[list[BlockArgument], ctypes.Array[Any]]:
    """Return the blocks' parts of a call, filled in for as long as their weights lie where they lie; see ``_template``.

    ``pointers`` are of all blocks' weights, ``shapes`` of the first's; ``blocks`` has each norm's kind and epsilon and
    scale.
    """
    if (misfit := misfit_of(width, shapes, len(walks_reversed), len(looks_back))) is not None:
        raise ShapeError(misfit)
    unknown = next((norm for norm, _, _ in blocks if norm not in NORMS), None)
    if unknown is not None:
        raise ConfigError(f"the norm of a Vim block must be one of {', '.join(NORMS)}, got {unknown!r}")
    traversals = tuple(Traversal.sequence(tokens, reverse=back) for back in walks_reversed)
    each, of_ssm = len(WEIGHTS), len(SsmWeights._fields)
    described = []
    for at, (norm, eps, scale) in enumerate(blocks):
        own = pointers[at * each : (at + 1) * each]
        block = BlockArgument(ssm=_template(own[:of_ssm], shapes[:of_ssm], dtype, traversals, looks_back, tokens))
        block.width, block.scale, block.norm, block.eps = width, scale, NORMS.index(norm), eps
        block.ssm.product_dtype = product_dtype
        block.norm_weight, block.norm_bias, block.in_proj, block.out_proj, block.gamma = own[of_ssm:]
        described.append(block)
    return described, _pointers(described)


def _pointers(blocks: Sequence[BlockArgument]) -> ctypes.Array[Any]:
    return (ctypes.POINTER(BlockArgument) * len(blocks))(*map(ctypes.pointer, blocks))
