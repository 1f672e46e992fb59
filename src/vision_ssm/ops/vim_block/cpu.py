"""Vim blocks in C++, one or a column of them: their weights, and the calls of the kernels (csrc/vim_block/)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS, NormWeights
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, mirrors
from vision_ssm.ops.scan.contract import CHUNK
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.ssm.cpu import _Ssm, _template
from vision_ssm.ops.traversal import Traversal
from vision_ssm.ops.vim_block.recycled import Recycler

__all__ = [
    "BRANCH_WEIGHTS",
    "Branch",
    "BranchArgument",
    "BranchWeights",
    "Chosen",
    "Described",
    "Kept",
    "column",
    "describe",
    "leave_in",
    "multiplies_bfloat16",
]

_recycler = Recycler(most_idle=2**29)


class BranchWeights(NamedTuple):
    """What a block learns: norm over D, in_proj [2C, D], the SSM over C channels, out_proj [D, C], ``gamma`` [D]."""

    norm: NormWeights
    in_proj: Tensor
    ssm: SsmWeights
    out_proj: Tensor
    gamma: Tensor | None = None

    def in_order(self) -> tuple[Tensor | None, ...]:
        """Return the weights in the order of BRANCH_WEIGHTS."""
        norm = self.norm
        return (*self.ssm, norm.weight, norm.bias, self.in_proj, self.out_proj, self.gamma)


BRANCH_WEIGHTS = (*SsmWeights._fields, "norm weight", "norm bias", "in_proj", "out_proj", "gamma")


class Branch(NamedTuple):
    """What one block adds to the stream.

    ``scale`` is a factor of the branch; ``walks_reversed`` tells of each of the K directions whether it walks from the
    last token, ``looks_back`` of each set of taps whether it looks towards the end of the sequence.
    """

    weights: BranchWeights
    scale: float
    walks_reversed: tuple[bool, ...]
    looks_back: tuple[bool, ...]


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
            return _recycler.take(math.prod(shape)).view(shape)

        return cls(
            room(batch, tokens, channels),
            room(batch, tokens, 2 * channels) if xz else None,
            room(batch, directions, -(-tokens // CHUNK), states, channels),
            room(batch, directions, tokens, outputs),
        )


@mirrors("vssm_vim_block")
class BranchArgument(ctypes.Structure):
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
        ("branches", ctypes.POINTER(ctypes.POINTER(BranchArgument))),
        *((n, TensorArgument) for n in ("stream", "out")),
        ("rows", ctypes.POINTER(ctypes.c_int64)),
        ("norm", ctypes.c_int32),
        ("eps", ctypes.c_float),
        *((n, ctypes.c_void_p) for n in ("norm_weight", "norm_bias")),
        ("normed", TensorArgument),
    )


class Described(NamedTuple):
    """Blocks of equal sizes, dtypes and directions as the kernel takes them, for streams [any B, L, D] of one L.

    ``held`` are their weights, contiguous; ``blocks`` their parts of a call, in which ``pointers`` point.
    """

    held: list[Tensor | None]
    blocks: list[BranchArgument]
    pointers: ctypes.Array[Any]


class Chosen(NamedTuple):
    """Tokens of the last block's result that are wanted, and the norm that they go through."""

    rows: tuple[int, ...]
    norm: NormWeights


def column(stream: Tensor, blocks: Described, *, keep: Kept | None = None, chosen: Chosen | None = None) -> Tensor:
    """Return the stream [B, L, D] after Vim blocks, one after the other; or of it [B, rows, D], what is ``chosen``.

    What a backward pass through a single block needs is written into ``keep``, if given.
    """
    pointers, kept = blocks.pointers, list[object]([blocks])
    if keep is not None:
        trained = BranchArgument.from_buffer_copy(blocks.blocks[0])
        leave_in(trained, keep, kept)
        pointers = _pointers([trained])
    call = _Column(batch=stream.shape[0], count=len(blocks.blocks), threads=torch.get_num_threads(), isa=native.ISA)
    call.branches = pointers
    kernel = KernelCall(call, kept)
    out = torch.empty_like(stream, memory_format=torch.contiguous_format)
    kernel.set(stream=stream, out=out)
    if chosen is None:
        kernel.run("vssm_vim_blocks_forward")
        return out
    norm, count = chosen.norm, len(chosen.rows)
    call.chosen, call.rows = count, (ctypes.c_int64 * count)(*chosen.rows)
    call.norm, call.eps = NORMS.index(norm.kind), norm.eps
    call.norm_weight, call.norm_bias = kernel.pointer(norm.weight), kernel.pointer(norm.bias)
    normed = stream.new_empty(stream.shape[0], count, stream.shape[2])
    kernel.set(normed=normed)
    kernel.run("vssm_vim_blocks_forward")
    return normed


def describe(stream: Tensor, branches: Sequence[Branch], half: bool) -> Described:
    """Describe blocks to the kernel; ``half`` lets products take bfloat16."""
    first = branches[0]
    held = [None if w is None else w.contiguous() for branch in branches for w in branch.weights.in_order()]
    return Described(
        held,
        *_column_template(
            tuple([None if w is None else w.data_ptr() for w in held]),
            tuple(None if w is None else w.shape for w in first.weights.ssm),
            DTYPES[first.weights.in_proj.dtype],
            DTYPES[torch.bfloat16 if half else torch.float32],
            tuple([(branch.weights.norm.kind, branch.weights.norm.eps, branch.scale) for branch in branches]),
            first.walks_reversed,
            first.looks_back,
            *stream.shape[1:],
        ),
    )


def multiplies_bfloat16(weights: BranchWeights) -> bool:
    """Tell whether a block's products may take bfloat16: its weights are, or autocast says so."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return weights.in_proj.dtype == torch.bfloat16


def leave_in(branch: BranchArgument, keep: Kept, kept: list[object]) -> None:
    """Tell the kernel where what the forward pass leaves lies; ``kept`` must outlive the call."""
    KernelCall(branch, kept).set(sums=keep.sums, xz=keep.xz)
    branch.saved, branch.projected = keep.states.data_ptr(), keep.projected.data_ptr()


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
) -> tuple[list[BranchArgument], ctypes.Array[Any]]:
    """Return the blocks' parts of a call, filled in for as long as their weights lie where they lie; see ``_template``.

    ``pointers`` are of all blocks' weights, ``shapes`` of the first SSM's; ``blocks`` has each norm's kind and epsilon
    and each branch's scale.
    """
    traversals = tuple(Traversal.sequence(tokens, reverse=back) for back in walks_reversed)
    each, of_ssm = len(BRANCH_WEIGHTS), len(SsmWeights._fields)
    branches = []
    for at, (norm, eps, scale) in enumerate(blocks):
        own = pointers[at * each : (at + 1) * each]
        branch = BranchArgument(ssm=_template(own[:of_ssm], shapes, dtype, traversals, looks_back, tokens))
        branch.width, branch.scale, branch.norm, branch.eps = width, scale, NORMS.index(norm), eps
        branch.ssm.product_dtype = product_dtype
        branch.norm_weight, branch.norm_bias, branch.in_proj, branch.out_proj, branch.gamma = own[of_ssm:]
        branches.append(branch)
    return branches, _pointers(branches)


def _pointers(branches: Sequence[BranchArgument]) -> ctypes.Array[Any]:
    return (ctypes.POINTER(BranchArgument) * len(branches))(*map(ctypes.pointer, branches))
