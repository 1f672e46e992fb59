"""A block of gated linear attention in C++ (csrc/gla_block/), a tile of tokens at a time."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS
from vision_ssm.ops.gate import show
from vision_ssm.ops.gla_block.contract import NAMES, GlaBlock
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, held_by_kernel, mirrors

__all__ = ["Described", "describe", "forward", "run"]

POINTERS = (
    *("norm_weight", "norm_bias", "norm2_weight", "norm2_bias", "g_norm", "l_norm", "conv", "qkv_proj", "gate_down"),
    *("gate_up", "gate_bias", "g_proj", "g_bias", "o_proj", "fc1", "fc2"),
)  # in the order of NAMES


@mirrors("vssm_gla_block")
class _GlaBlock(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "height", "width", "channels", "heads", "rank", "hidden")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "conv_act", "out_act", "parameter_dtype", "product_dtype")),
        *((n, ctypes.c_int32) for n in ("norm", "norm2")),
        *((n, ctypes.c_float) for n in ("eps", "eps2", "g_eps", "l_eps", "scale")),
        *((n, ctypes.c_void_p) for n in ("norm_weight", "norm_bias", "conv", "qkv_proj", "gate_down", "gate_up")),
        *((n, ctypes.c_void_p) for n in ("gate_bias", "g_proj", "g_bias", "g_norm", "l_norm", "o_proj")),
        *((n, ctypes.c_void_p) for n in ("norm2_weight", "norm2_bias", "fc1", "fc2")),
        *((n, TensorArgument) for n in ("x", "out")),
    )


class Described(NamedTuple):
    """A block in the kernel's form, but for a map and where the result goes; ``held`` are its weights, contiguous."""

    block: _GlaBlock
    held: list[Any]


def forward(x: Tensor, block: GlaBlock) -> Tensor:
    """Return [B, H, W, C], contiguous, in x's dtype; the weights are of one dtype.

    Raises:
        ShapeError: a weight does not fit, or is not memory of the dtype of the others.
    """
    return run(x, describe(block))


def describe(block: GlaBlock) -> Described:
    """Describe a block to the kernel.

    Raises:
        ShapeError: a weight does not fit, or is not memory of the dtype of the others.
    """
    dtype, channels = block.qkv_proj.dtype, block.o_proj.shape[-1]
    if (misfit := block.misfit(channels)) is not None:
        raise ShapeError(misfit)
    held = held_by_kernel(NAMES, block.tensors(), dtype)
    made = _GlaBlock(heads=block.heads, scale=block.scale, conv_act=block.conv_act, out_act=block.out_act)
    made.channels, made.rank, made.hidden = channels, block.gate_down.shape[0], block.fc2.shape[1]
    made.parameter_dtype = made.product_dtype = DTYPES[dtype]
    made.norm, made.norm2 = NORMS.index(block.norm.kind), NORMS.index(block.norm2.kind)
    made.eps, made.eps2 = block.norm.eps, block.norm2.eps
    made.g_eps, made.l_eps = block.g_norm.eps, block.l_norm.eps
    for name, weight in zip(POINTERS, held, strict=True):
        setattr(made, name, None if weight is None else weight.data_ptr())
    return Described(made, held)


def run(x: Tensor, described: Described) -> Tensor:
    """Return [B, H, W, C], contiguous, in x's dtype.

    Raises:
        ShapeError: x is no map of so many channels, or has no token.
    """
    call = _GlaBlock.from_buffer_copy(described.block)
    if x.dim() != 4 or x.shape[3] != call.channels or x.numel() == 0:
        raise ShapeError(f"the kernel expects a map [B, H, W, {call.channels}], got {show(x.shape)}")
    call.batch, call.height, call.width = x.shape[:3]
    call.threads, call.isa = torch.get_num_threads(), native.ISA
    kernel = KernelCall(call, [described])
    shape = (call.batch, 1, call.height * call.width, call.channels)
    out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    kernel.set(shape, x.dtype, x=x.reshape(shape), out=out.view(shape))
    kernel.run("vssm_gla_block_forward")
    return out
