"""Gated linear attention in C++ (csrc/gla/): float32 and bfloat16 on the CPU, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.gate import check_sizes
from vision_ssm.ops.gla.contract import GlaCall, GlaGradients
from vision_ssm.ops.native import KernelCall, TensorArgument, mirrors, task_groups
from vision_ssm.ops.traversal import Cover, cover_of
from vision_ssm.ops.walks import Walk, kernel_walks

__all__ = ["backward", "forward"]

PAIR = 16  # value channels that a task has at least: two vectors of the narrowest instruction set


@mirrors("vssm_gla")
class _Gla(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "directions", "tokens", "heads", "keys", "values", "groups")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "merge", "cover")),
        ("scale", ctypes.c_float),
        ("walks", ctypes.POINTER(Walk)),
        *((n, TensorArgument) for n in ("q", "k", "v", "gates", "y", "grad", "dq", "dk", "dv", "dgates")),
    )


def forward(call: GlaCall) -> Tensor:
    """Run the forward kernel, whose sums are float32."""
    kernel = _describe(call)
    y = _fresh(call.output_shape(), kernel.structure.cover, own=not call.merge)
    kernel.set(_output_shape(call), torch.float32, y=_directions(y, call))
    kernel.run("vssm_gla_forward")
    return y.to(call.v.dtype)


def backward(call: GlaCall, grad: Tensor) -> GlaGradients:
    """Run the backward kernel."""
    kernel = _describe(call)
    cover, directions = kernel.structure.cover, len(call.traversals)
    dq, dk, dv = (_fresh(x.shape, cover, own=False) for x in (call.q, call.k, call.v))
    dgates = _fresh(call.log_gates.shape, cover, own=True)
    keys = (call.batch, directions, call.tokens, call.q.shape[2])
    kernel.set(_output_shape(call), call.v.dtype, grad=_directions(grad, call))
    kernel.set(_output_shape(call), torch.float32, dv=dv)
    kernel.set(keys, torch.float32, dq=dq, dk=dk, dgates=dgates)
    kernel.run("vssm_gla_backward")
    return GlaGradients(dq.to(call.q.dtype), dk.to(call.q.dtype), dv.to(call.q.dtype), dgates)


def _describe(call: GlaCall) -> KernelCall:
    """Return the kernel call with everything that forward and backward share."""
    gla = _Gla(scale=call.scale, merge=call.merge, heads=call.heads, keys=call.keys, values=call.values)
    gla.batch, gla.tokens, gla.directions = call.batch, call.tokens, call.log_gates.shape[1]
    check_sizes("gated linear attention", heads=gla.heads, keys=gla.keys, values=gla.values, directions=gla.directions)
    if len(call.traversals) != gla.directions:
        raise ShapeError(
            f"gated linear attention expects a walk for each of {gla.directions} directions, got {len(call.traversals)}"
        )
    gla.walks, gla.cover = kernel_walks(call.traversals), cover_of(call.traversals, call.tokens)
    gla.groups = task_groups(call.batch * call.heads, -(-call.values // PAIR))
    gla.threads, gla.isa = torch.get_num_threads(), native.ISA
    kernel = KernelCall(gla)
    keys = (call.batch, gla.directions, call.tokens, gla.heads * gla.keys)
    kernel.set(keys, call.q.dtype, q=call.q, k=call.k)
    kernel.set(_output_shape(call), call.q.dtype, v=call.v)
    kernel.set(keys, torch.float32, gates=call.log_gates)
    return kernel


def _fresh(shape: Sequence[int], cover: int, *, own: bool) -> Tensor:
    """What the directions share is added to where they overlap; of its own, each fills the tokens it visits."""
    empty = cover == Cover.EACH or (cover == Cover.ONCE and not own)
    return (torch.empty if empty else torch.zeros)(shape, dtype=torch.float32, device="cpu")


def _output_shape(call: GlaCall) -> tuple[int, int, int, int]:
    """Return [B, K, L, H V]."""
    return call.batch, len(call.traversals), call.tokens, call.heads * call.values


def _directions(y: Tensor, call: GlaCall) -> Tensor:
    """Return an output-shaped tensor as [B, K|1, L, H V]."""
    return y[:, None] if call.merge else y
