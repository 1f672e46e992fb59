"""The causal convolution in C++ (csrc/conv/kernel.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.conv.contract import MOST_TAPS
from vision_ssm.ops.gate import check_sizes, memory
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, mirrors, task_groups

__all__ = ["backward", "forward"]

_TILE = 64


@mirrors("vssm_conv")
class _Conv(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "directions", "tokens", "channels", "taps", "groups")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "activation")),
        ("reverse", ctypes.POINTER(ctypes.c_int32)),
        *((n, ctypes.c_void_p) for n in ("weight", "bias")),
        *((n, TensorArgument) for n in ("x", "y", "grad", "dx")),
        ("dparameters", ctypes.c_void_p),
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    """Return [B, K, L, C], the directions outermost in memory; weight [K, C, T] and bias [K, C] in float32."""
    y = x.new_empty((len(reverse), *x.shape)).transpose(0, 1)
    kernel = _describe(x, weight, bias, reverse, activation)
    kernel.set(_result_shape(x, weight), x.dtype, y=y)
    kernel.run("vssm_conv_forward")
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    reverse: Sequence[bool],
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    directions, channels, taps = weight.shape
    kernel = _describe(x, weight, bias, reverse, activation)
    dx = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    tasks = x.shape[0] * kernel.structure.groups
    parts = torch.empty(tasks, directions, taps + 1, channels, dtype=torch.float32, device="cpu")
    shape = _result_shape(x, weight)
    memory("grad", grad, shape, x.dtype)
    kernel.set(shape, x.dtype, grad=grad)
    kernel.set(shape, torch.float32, dx=dx)
    kernel.structure.dparameters = parts.data_ptr()
    kernel.run("vssm_conv_backward")
    total = parts.sum(0)
    return dx.to(x.dtype), total[:, :taps].transpose(1, 2).contiguous(), total[:, taps].contiguous()


def _describe(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> KernelCall:
    directions, channels, taps = weight.shape
    batch, tokens, _ = x.shape
    check_sizes("the convolution", directions=directions, taps=taps)
    if len(reverse) != directions or taps > MOST_TAPS or x.dtype not in DTYPES:
        raise ShapeError(
            f"the convolution expects x in float32 or bfloat16 and weight [{len(reverse)}, C, 1 to {MOST_TAPS}], "
            f"got {x.dtype} and {list(weight.shape)}"
        )
    kernel = KernelCall(
        _Conv(
            batch=batch,
            directions=directions,
            tokens=tokens,
            channels=channels,
            taps=taps,
            groups=task_groups(batch, -(-tokens // _TILE)),
            threads=torch.get_num_threads(),
            isa=native.ISA,
            activation=activation,
            reverse=(ctypes.c_int32 * directions)(*reverse),
        )
    )
    conv = kernel.structure
    conv.weight = kernel.pointer("weight", weight.transpose(1, 2), (directions, taps, channels))
    conv.bias = kernel.pointer("bias", bias, (directions, channels))
    kernel.set((batch, 1, tokens, channels), x.dtype, x=x)
    return kernel


def _result_shape(x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    """Return [B, K, L, C]."""
    (batch, tokens, channels), directions = x.shape, weight.shape[0]
    return batch, directions, tokens, channels
