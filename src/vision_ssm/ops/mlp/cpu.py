"""The MLP branch in C++, 64 tokens at a time."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS
from vision_ssm.ops.gate import check_sizes, show
from vision_ssm.ops.mlp.contract import MlpWeights
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, mirrors

__all__ = ["forward"]


@mirrors("vssm_mlp")
class _Mlp(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("tokens", "width", "hidden")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "norm", "parameter_dtype", "product_dtype")),
        ("eps", ctypes.c_float),
        *((n, ctypes.c_void_p) for n in ("norm_weight", "norm_bias", "fc1", "fc1_bias", "fc2", "fc2_bias")),
        *((n, TensorArgument) for n in ("x", "added", "out")),
    )


def forward(x: Tensor, added: Tensor, weights: MlpWeights) -> Tensor:
    """Return [..., C], contiguous; everything of one dtype."""
    hidden, width = weights.fc1_weight.shape
    check_sizes("the MLP branch", width=width, hidden=hidden)
    if x.dim() == 0 or x.shape[-1] != width or added.shape != x.shape:
        raise ShapeError(f"the MLP branch expects x and added [..., {width}], got {show(x.shape)}, {show(added.shape)}")
    mlp = _Mlp(width=width, hidden=hidden, tokens=x.numel() // width, threads=torch.get_num_threads(), isa=native.ISA)
    mlp.parameter_dtype = mlp.product_dtype = DTYPES[x.dtype]
    mlp.norm, mlp.eps = NORMS.index(weights.norm.kind), weights.norm.eps
    kernel = KernelCall(mlp)
    norm = weights.norm
    mlp.norm_weight = kernel.pointer("norm weight", norm.weight, (width,), x.dtype)
    mlp.norm_bias = kernel.pointer_or_none("norm bias", norm.bias, (width,), x.dtype)
    mlp.fc1 = kernel.pointer("fc1_weight", weights.fc1_weight, (hidden, width), x.dtype)
    mlp.fc1_bias = kernel.pointer("fc1_bias", weights.fc1_bias, (hidden,), x.dtype)
    mlp.fc2 = kernel.pointer("fc2_weight", weights.fc2_weight, (width, hidden), x.dtype)
    mlp.fc2_bias = kernel.pointer("fc2_bias", weights.fc2_bias, (width,), x.dtype)
    out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    rows = {name: t.reshape(1, -1, width) for name, t in (("x", x), ("added", added), ("out", out))}
    kernel.set((1, 1, mlp.tokens, width), x.dtype, **rows)
    kernel.run("vssm_mlp_forward")
    return out
