"""A block of gated linear attention in C++ (csrc/gla_block/), a tile of tokens at a time."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS
from vision_ssm.ops.gla_block.contract import NAMES, GlaBlock
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, held_by_kernel, mirrors

__all__ = ["forward"]

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


def forward(x: Tensor, block: GlaBlock) -> Tensor:
    """Return [B, H, W, C], contiguous, in x's dtype; the weights are of one dtype.

    Raises:
        ShapeError: a weight does not fit, or is not memory of the dtype of the others.
    """
    if (misfit := block.misfit(x.shape)) is not None or x.numel() == 0:
        raise ShapeError(misfit or f"the kernel expects a map with a token at least, got {list(x.shape)}")
    dtype = block.qkv_proj.dtype
    held = held_by_kernel(NAMES, block.tensors(), dtype)
    made = _GlaBlock(heads=block.heads, scale=block.scale, conv_act=block.conv_act, out_act=block.out_act)
    made.batch, made.height, made.width, made.channels = x.shape
    made.rank, made.hidden = block.gate_down.shape[0], block.fc2.shape[1]
    made.threads, made.isa = torch.get_num_threads(), native.ISA
    made.parameter_dtype = made.product_dtype = DTYPES[dtype]
    made.norm, made.norm2 = NORMS.index(block.norm.kind), NORMS.index(block.norm2.kind)
    made.eps, made.eps2, made.g_eps, made.l_eps = (
        norm.eps for norm in (block.norm, block.norm2, block.g_norm, block.l_norm)
    )
    for name, weight in zip(POINTERS, held, strict=True):
        setattr(made, name, None if weight is None else weight.data_ptr())
    kernel = KernelCall(made, [held])
    out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    tokens = made.height * made.width
    rows = {name: t.reshape(made.batch, 1, tokens, made.channels) for name, t in (("x", x), ("out", out))}
    kernel.set((made.batch, 1, tokens, made.channels), x.dtype, **rows)
    kernel.run("vssm_gla_block_forward")
    return out
