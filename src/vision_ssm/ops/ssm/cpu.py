"""The selective SSM in one pass, in C++ (csrc/ssm/)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, held_by_kernel, mirrors
from vision_ssm.ops.ssm.contract import SsmWeights, misfit_of
from vision_ssm.ops.traversal import Cover, Traversal, cover_of
from vision_ssm.ops.walks import Walk, kernel_walks

__all__ = ["forward"]


@mirrors("vssm_ssm")
class _Ssm(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "directions", "tokens", "channels", "states", "rank", "taps")),
        *((n, ctypes.c_int64) for n in ("convolutions", "projections")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "cover", "parameter_dtype", "product_dtype")),
        ("walks", ctypes.POINTER(Walk)),
        ("reverse", ctypes.POINTER(ctypes.c_int32)),
        *((n, ctypes.c_void_p) for n in ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "a_log", "skip")),
        *((n, TensorArgument) for n in ("x", "z", "y", "sum")),
    )


def forward(
    x: Tensor, z: Tensor | None, weights: SsmWeights, traversals: tuple[Traversal, ...], reverse: Sequence[bool]
) -> Tensor:
    """Return [B, L, C] for x [B, L, C]; the arguments as in :func:`vision_ssm.ops.selective_ssm`."""
    kept, template = _prepared(weights, traversals, tuple(reverse), x.shape[1])
    ssm = _Ssm.from_buffer_copy(template)
    ssm.batch, ssm.threads, ssm.isa = x.shape[0], torch.get_num_threads(), native.ISA
    y = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    narrow = y.dtype != torch.float32 and len(traversals) > 1 and ssm.cover == Cover.EACH
    total = torch.empty_like(y, dtype=torch.float32) if narrow else y
    kernel = KernelCall(ssm, kept)
    shape = (ssm.batch, 1, ssm.tokens, ssm.channels)
    kernel.set(shape, x.dtype, x=x, y=y, z=z)
    kernel.set(shape, total.dtype, sum=total)
    kernel.run("vssm_ssm_forward")
    return y


def _prepared(
    weights: SsmWeights, traversals: tuple[Traversal, ...], reverse: tuple[bool, ...], tokens: int
) -> tuple[list[object], _Ssm]:
    """Return the SSM's part of a call without images, and what must outlive the call."""
    held = held_by_kernel(SsmWeights._fields, weights, weights.A_log.dtype)
    pointers = tuple(None if w is None else w.data_ptr() for w in held)
    shapes = tuple(None if w is None else w.shape for w in held)
    template = _template(pointers, shapes, DTYPES[weights.A_log.dtype], traversals, reverse, tokens)
    return [held, template], template


@lru_cache(maxsize=1024)
def _template(
    pointers: tuple[int | None, ...],
    shapes: tuple[Any, ...],
    dtype: int,
    traversals: tuple[Traversal, ...],
    reverse: tuple[bool, ...],
    tokens: int,
) -> _Ssm:
    """Return a call with everything filled in that stays as long as the weights lie where they lie.

    Filling it in anew for every call takes as long as a dozen tokens.

    Raises:
        ShapeError: a weight has not the shape that the kernel is told, or the kernel cannot do with such walks.
    """
    of = dict(zip(SsmWeights._fields, shapes, strict=True))
    if (misfit := misfit_of(of, len(traversals), len(reverse), even=True)) is not None:
        raise ShapeError(misfit)
    ssm = _Ssm(tokens=tokens, parameter_dtype=dtype)
    ssm.a_log, ssm.skip, ssm.x_proj, ssm.dt_proj, ssm.dt_bias, ssm.conv_weight, ssm.conv_bias = pointers
    ssm.directions, ssm.channels, ssm.states = of["A_log"]
    ssm.projections, _, ssm.rank = of["dt_proj_weight"]
    ssm.cover = cover_of(traversals, tokens)
    if ssm.cover == Cover.SOME:
        raise ShapeError("the one-pass SSM expects walks that visit every token each, or once between them")
    ssm.walks = kernel_walks(traversals)
    if of["conv_weight"] is not None:
        ssm.convolutions, _, ssm.taps = of["conv_weight"]
        ssm.reverse = (ctypes.c_int32 * len(traversals))(*(reverse * (len(traversals) // len(reverse))))
    return ssm
