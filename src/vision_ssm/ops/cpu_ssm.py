"""The selective SSM in one pass in C++ (csrc/ssm.h): inference only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.ops.contract import Cover, cover_of
from vision_ssm.ops.cpu import Walk, kernel_walks
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument
from vision_ssm.ops.traversal import Traversal

__all__ = ["MOST_TAPS", "forward"]

MOST_TAPS = 8


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
    ssm.batch, ssm.tokens, ssm.channels = x.shape
    ssm.directions, _, ssm.states = A_log.shape
    ssm.projections, _, ssm.rank = dt_proj_weight.shape
    ssm.threads, ssm.isa = torch.get_num_threads(), isa
    ssm.cover, ssm.parameter_dtype = cover_of(traversals, x.shape[1]), DTYPES[A_log.dtype]
    ssm.walks, _ = kernel_walks(traversals)
    kernel = KernelCall(ssm)
    if conv_weight is not None:
        ssm.convolutions, _, ssm.taps = conv_weight.shape
        ssm.reverse = (ctypes.c_int32 * len(traversals))(*(tuple(reverse) * (len(traversals) // len(reverse))))
        ssm.conv_weight, ssm.conv_bias = kernel.pointer(conv_weight), kernel.pointer(conv_bias)
    ssm.x_proj, ssm.dt_proj = kernel.pointer(x_proj_weight), kernel.pointer(dt_proj_weight)
    ssm.dt_bias, ssm.a_log, ssm.skip = kernel.pointer(dt_proj_bias), kernel.pointer(A_log), kernel.pointer(D)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    narrow = y.dtype != torch.float32 and len(traversals) > 1 and ssm.cover == Cover.EACH
    total = torch.empty_like(y, dtype=torch.float32) if narrow else y
    kernel.set(x=x[:, None], y=y[:, None], sum=total[:, None], z=None if z is None else z[:, None])
    kernel.run("vssm_ssm_forward")
    return y
