"""The scan in C++ (csrc/): float32 and bfloat16 on the CPU, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.gate import check_sizes, memory
from vision_ssm.ops.native import KernelCall, TensorArgument, mirrors, task_groups
from vision_ssm.ops.scan.contract import ScanCall, ScanGradients, saved_states_shape
from vision_ssm.ops.traversal import Cover, cover_of
from vision_ssm.ops.walks import Walk, kernel_walks

__all__ = ["backward", "forward"]


@mirrors("vssm_scan")
class _Scan(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "directions", "tokens", "channels", "states", "chunks", "groups")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "softplus", "merge", "cover")),
        ("walks", ctypes.POINTER(Walk)),
        *((n, ctypes.c_void_p) for n in ("a", "skip", "bias")),
        *((n, TensorArgument) for n in ("u", "delta", "b", "c", "z")),
        ("saved", ctypes.c_void_p),
        *((n, TensorArgument) for n in ("y", "sum", "grad", "du", "ddelta", "dz")),
        *((n, ctypes.c_void_p) for n in ("db", "dc")),
        *((n, ctypes.c_int64) for n in ("db_directions", "dc_directions")),
        *((n, ctypes.c_void_p) for n in ("da", "dskip", "dbias")),
    )


def forward(call: ScanCall, save_states: bool) -> tuple[Tensor, Tensor]:
    """Run the forward kernel."""
    cover = cover_of(call.traversals, call.tokens)
    y = call.output()
    states = call.A.new_empty(saved_states_shape(call)) if save_states else call.A.new_empty(0)
    if cover == Cover.SOME or (cover == Cover.ONCE and not call.merge):
        y.zero_()
    total = y
    if call.merge and y.dtype != torch.float32 and cover != Cover.ONCE:
        if cover == Cover.SOME:
            total = torch.zeros_like(y, dtype=torch.float32)
        elif len(call.traversals) > 1:
            total = torch.empty_like(y, dtype=torch.float32)
    kernel = _describe(call)
    shape = _output_shape(call)
    kernel.set(shape, call.u.dtype, y=_directions(y, call))
    kernel.set(shape, total.dtype, sum=_directions(total, call))
    kernel.structure.saved = states.data_ptr() if save_states else None
    kernel.run("vssm_scan_forward")
    return y, states


def backward(call: ScanCall, states: Tensor, grad: Tensor) -> ScanGradients:
    """Run the backward kernel and sum its per-task parts, always in the same order."""
    kernel = _describe(call)
    scan = kernel.structure
    cover, directions = cover_of(call.traversals, call.tokens), len(call.traversals)

    def fresh(shape: Sequence[int], own: bool, dtype: torch.dtype) -> Tensor:
        """What the directions share is added to where they overlap; of its own, each fills the visited tokens."""
        empty = cover == Cover.EACH or (cover == Cover.ONCE and not own)
        return (torch.empty if empty else torch.zeros)(shape, dtype=dtype, device="cpu")

    def gradient_of(x: Tensor) -> Tensor:
        own = x.shape[1] > 1
        summed = not own and directions > 1 and cover != Cover.ONCE
        return fresh(x.shape, own, torch.float32 if summed else x.dtype)

    du, ddelta = gradient_of(call.u), gradient_of(call.delta)
    dz = None if call.z is None else gradient_of(call.z[:, None])
    db, dc = (fresh((scan.groups, *x.shape), x.shape[1] > 1, torch.float32) for x in (call.B, call.C))
    da = torch.empty(call.batch, directions, call.states, call.channels, dtype=torch.float32, device="cpu")
    dskip, dbias = torch.zeros(2, call.batch, directions, call.channels, dtype=torch.float32, device="cpu")
    memory("grad", grad, call.output_shape(), call.u.dtype)
    shape = _output_shape(call)
    kernel.set(shape, call.u.dtype, grad=_directions(grad, call))
    for name, x in (("du", du), ("ddelta", ddelta), ("dz", dz)):
        kernel.set(shape, torch.float32 if x is None else x.dtype, **{name: x})
    scan.saved = kernel.pointer("states", states, saved_states_shape(call))
    scan.db, scan.dc = db.data_ptr(), dc.data_ptr()
    scan.db_directions, scan.dc_directions = call.B.shape[1], call.C.shape[1]
    scan.da, scan.dskip, scan.dbias = da.data_ptr(), dskip.data_ptr(), dbias.data_ptr()
    kernel.run("vssm_scan_backward")
    return ScanGradients(
        du.to(call.u.dtype),
        ddelta.to(call.delta.dtype),
        da.sum(0).transpose(1, 2).contiguous(),
        _over_tasks(db).to(call.B.dtype),
        _over_tasks(dc).to(call.C.dtype),
        dskip.sum(0) if call.D is not None else None,
        None if dz is None else dz[:, 0].to(call.u.dtype),
        dbias.sum(0) if call.delta_bias is not None else None,
    )


def _describe(call: ScanCall) -> KernelCall:
    """Return the kernel call with everything that forward and backward share."""
    scan = _Scan()
    scan.batch, scan.tokens = call.batch, call.tokens
    scan.directions, scan.channels, scan.states = sizes = call.A.shape
    check_sizes("the scan", directions=scan.directions, states=scan.states)
    if len(call.traversals) != scan.directions:
        raise ShapeError(
            f"the scan expects a walk for each of {scan.directions} directions, got {len(call.traversals)}"
        )
    scan.walks, scan.chunks = kernel_walks(call.traversals), saved_states_shape(call)[2]
    scan.groups = task_groups(call.batch, -(-call.channels // 16))
    scan.threads, scan.isa = torch.get_num_threads(), native.ISA
    scan.softplus, scan.merge = call.delta_softplus, call.merge
    scan.cover = cover_of(call.traversals, call.tokens)
    kernel = KernelCall(scan)
    scan.a = kernel.pointer("A", call.A, sizes)
    scan.skip, scan.bias = (
        kernel.pointer_or_none(name, x, sizes[:2]) for name, x in (("D", call.D), ("delta_bias", call.delta_bias))
    )
    kernel.set(_output_shape(call), call.u.dtype, u=call.u, delta=call.delta, z=call.z)
    kernel.set((call.batch, scan.directions, call.tokens, scan.states), call.u.dtype, b=call.B, c=call.C)
    return kernel


def _output_shape(call: ScanCall) -> tuple[int, int, int, int]:
    """Return [B, K, L, C]."""
    return call.batch, len(call.traversals), call.tokens, call.channels


def _directions(y: Tensor, call: ScanCall) -> Tensor:
    """Return an output-shaped tensor as [B, K|1, L, C]."""
    return y[:, None] if call.merge else y


def _over_tasks(parts: Tensor) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
