"""The selective SSM in one pass in C++ (csrc/ssm.h): inference only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vision_ssm.ops.contract import Cover, cover_of
from vision_ssm.ops.cpu import Walk, kernel_walks
from vision_ssm.ops.cpu_conv import MOST_TAPS
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument
from vision_ssm.ops.traversal import Traversal

__all__ = ["MOST_TAPS", "NORMS", "NormWeights", "SsmWeights", "branch", "forward"]

NORMS = ("rms", "layer")  # by the numbers of csrc/ssm.h


class SsmWeights(NamedTuple):
    """What a selective SSM learns, stacked over its K directions; shapes as in :func:`vision_ssm.ops.one_pass`."""

    A_log: Tensor
    D: Tensor
    x_proj_weight: Tensor
    dt_proj_weight: Tensor
    dt_proj_bias: Tensor
    conv_weight: Tensor | None = None
    conv_bias: Tensor | None = None


class NormWeights(NamedTuple):
    """A norm over D channels: ``kind`` 'rms' or 'layer', ``weight`` and ``bias`` [D]."""

    kind: str
    eps: float
    weight: Tensor
    bias: Tensor | None = None


class _Ssm(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "directions", "tokens", "channels", "states", "rank", "taps")),
        *((n, ctypes.c_int64) for n in ("convolutions", "projections")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "cover", "parameter_dtype")),
        ("walks", ctypes.POINTER(Walk)),
        ("reverse", ctypes.POINTER(ctypes.c_int32)),
        *((n, ctypes.c_void_p) for n in ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "a_log", "skip")),
        *((n, TensorArgument) for n in ("x", "z", "y", "sum")),
    )


class _Branch(ctypes.Structure):
    _fields_ = (
        ("ssm", _Ssm),
        ("width", ctypes.c_int64),
        ("norm", ctypes.c_int32),
        *((n, ctypes.c_float) for n in ("eps", "scale")),
        *((n, ctypes.c_void_p) for n in ("norm_weight", "norm_bias", "in_proj", "out_proj", "gamma")),
        *((n, TensorArgument) for n in ("stream", "out")),
    )


def forward(
    x: Tensor,
    z: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    traversals: tuple[Traversal, ...],
    reverse: Sequence[bool],
    isa: int,
) -> Tensor:
    """Return [B, L, C] for x [B, L, C]; parameters as in ``ops.ssm.selective_ssm``, all of one dtype."""
    ssm = _Ssm()
    kernel = KernelCall(ssm)
    weights = SsmWeights(A_log, D, x_proj_weight, dt_proj_weight, dt_proj_bias, conv_weight, conv_bias)
    _describe(kernel, ssm, weights, traversals, reverse, x.shape[0], x.shape[1], isa)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    narrow = y.dtype != torch.float32 and len(traversals) > 1 and ssm.cover == Cover.EACH
    total = torch.empty_like(y, dtype=torch.float32) if narrow else y
    kernel.set(x=x[:, None], y=y[:, None], sum=total[:, None], z=None if z is None else z[:, None])
    kernel.run("vssm_ssm_forward")
    return y


def branch(
    stream: Tensor,
    norm: NormWeights,
    in_proj_weight: Tensor,
    weights: SsmWeights,
    out_proj_weight: Tensor,
    gamma: Tensor | None,
    scale: float,
    traversals: tuple[Traversal, ...],
    reverse: Sequence[bool],
    isa: int,
) -> Tensor:
    """Return stream [B, L, D] plus what a Vim block adds to it; arguments as in ``ops.branch.residual_branch``."""
    call = _Branch()
    kernel = KernelCall(call)
    _describe(kernel, call.ssm, weights, traversals, reverse, stream.shape[0], stream.shape[1], isa)
    call.width, call.scale, call.norm, call.eps = stream.shape[2], scale, NORMS.index(norm.kind), norm.eps
    call.norm_weight, call.norm_bias = kernel.pointer(norm.weight), kernel.pointer(norm.bias)
    call.in_proj, call.out_proj = kernel.pointer(in_proj_weight), kernel.pointer(out_proj_weight)
    call.gamma = kernel.pointer(gamma)
    out = torch.empty_like(stream, memory_format=torch.contiguous_format)
    kernel.set(stream=stream[:, None], out=out[:, None])
    kernel.run("vssm_branch_forward")
    return out


def _describe(
    kernel: KernelCall,
    ssm: _Ssm,
    weights: SsmWeights,
    traversals: tuple[Traversal, ...],
    reverse: Sequence[bool],
    batch: int,
    tokens: int,
    isa: int,
) -> None:
    """Fill in everything but the tensors that are read and written."""
    ssm.batch, ssm.tokens = batch, tokens
    ssm.directions, ssm.channels, ssm.states = weights.A_log.shape
    ssm.projections, _, ssm.rank = weights.dt_proj_weight.shape
    ssm.threads, ssm.isa = torch.get_num_threads(), isa
    ssm.cover, ssm.parameter_dtype = cover_of(traversals, tokens), DTYPES[weights.A_log.dtype]
    ssm.walks, _ = kernel_walks(traversals)
    if weights.conv_weight is not None:
        ssm.convolutions, _, ssm.taps = weights.conv_weight.shape
        ssm.reverse = (ctypes.c_int32 * len(traversals))(*(tuple(reverse) * (len(traversals) // len(reverse))))
        ssm.conv_weight, ssm.conv_bias = kernel.pointer(weights.conv_weight), kernel.pointer(weights.conv_bias)
    ssm.x_proj, ssm.dt_proj = kernel.pointer(weights.x_proj_weight), kernel.pointer(weights.dt_proj_weight)
    ssm.dt_bias, ssm.a_log = kernel.pointer(weights.dt_proj_bias), kernel.pointer(weights.A_log)
    ssm.skip = kernel.pointer(weights.D)
