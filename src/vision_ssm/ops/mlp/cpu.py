"""The MLP branch in C++, 64 tokens at a time."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS
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
    """Return [..., C], contiguous; everything plain tensors of one dtype, checked by the caller."""
    hidden, width = weights.fc1_weight.shape
    mlp = _Mlp(width=width, hidden=hidden, tokens=x.numel() // width, threads=torch.get_num_threads(), isa=native.ISA)
    mlp.parameter_dtype = mlp.product_dtype = DTYPES[x.dtype]
    mlp.norm, mlp.eps = NORMS.index(weights.norm.kind), weights.norm.eps
    kernel = KernelCall(mlp)
    mlp.norm_weight, mlp.norm_bias, mlp.fc1, mlp.fc1_bias, mlp.fc2, mlp.fc2_bias = map(
        kernel.pointer, weights.tensors()
    )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kernel.set(**{name: t.reshape(1, -1, width) for name, t in (("x", x), ("added", added), ("out", out))})
    kernel.run("vssm_mlp_forward")
    return out
