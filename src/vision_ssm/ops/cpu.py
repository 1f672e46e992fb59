"""The scan in C++ (csrc/): float32 and bfloat16 on the CPU, forward and backward."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vision_ssm.ops.contract import ScanCall, ScanGradients, chunk_count, saved_states_shape
from vision_ssm.ops.native import (
    BEST,
    DTYPES,
    INSTRUCTION_SETS,
    LIBRARY,
    MISSING,
    KernelCall,
    TensorArgument,
    task_groups,
)

__all__ = ["CpuBackend"]

_LOG2E = 1.4426950408889634


class _Walk(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("start", "inner_count", "inner_stride", "outer_stride", "length")
    )


class _Scan(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "directions", "tokens", "channels", "states", "chunks", "groups")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "softplus", "merge", "partial")),
        ("walks", ctypes.POINTER(_Walk)),
        *((n, ctypes.c_void_p) for n in ("decay", "skip", "bias")),
        *((n, TensorArgument) for n in ("u", "delta", "b", "c", "z")),
        ("saved", ctypes.c_void_p),
        *((n, TensorArgument) for n in ("y", "sum", "grad", "du", "ddelta", "dz")),
        *((n, ctypes.c_void_p) for n in ("db", "dc")),
        *((n, ctypes.c_int64) for n in ("db_directions", "dc_directions")),
        *((n, ctypes.c_void_p) for n in ("ddecay", "dskip", "dbias")),
    )


class CpuBackend:
    """Compiled kernels; the best instruction set of the machine, or the one named."""

    name = "cpu"

    def __init__(self, instruction_set: str | None = None) -> None:
        self.missing = MISSING
        self.isa = BEST if instruction_set is None else INSTRUCTION_SETS.index(instruction_set)

    @property
    def instruction_set(self) -> str | None:
        """The instruction set that runs here, or None without the library."""
        if LIBRARY is None:
            return None
        return INSTRUCTION_SETS[LIBRARY.vssm_best_isa() if self.isa == BEST else self.isa]

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Needs the built library, CPU tensors and float32 or bfloat16."""
        if LIBRARY is None:
            return self.missing
        if device.type != "cpu":
            return f"the tensors are on {device}, the kernel runs on the CPU"
        if dtype not in DTYPES:
            return f"it computes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        if self.isa != BEST and not LIBRARY.vssm_has_isa(self.isa):
            return f"this machine or build lacks {INSTRUCTION_SETS[self.isa]}"
        return None

    def forward(self, call: ScanCall, save_states: bool) -> tuple[Tensor, Tensor]:
        """Run the forward kernel."""
        y = call.output()
        states = call.A.new_empty(saved_states_shape(call)) if save_states else call.A.new_empty(0)
        partial = _partial(call)
        if partial:
            y.zero_()
        total = y
        if call.merge and y.dtype != torch.float32 and (partial or len(call.traversals) > 1):
            total = torch.zeros_like(y, dtype=torch.float32) if partial else torch.empty_like(y, dtype=torch.float32)
        kernel = _describe(call, self.isa)
        kernel.set(y=_directions(y, call), sum=_directions(total, call))
        kernel.structure.saved = states.data_ptr() if save_states else None
        kernel.run("vssm_scan_forward")
        return y, states

    def backward(self, call: ScanCall, states: Tensor, grad: Tensor) -> ScanGradients:
        """Run the backward kernel and sum its per-task parts, always in the same order."""
        kernel = _describe(call, self.isa)
        scan = kernel.structure
        directions, (batch, channels, n) = (
            len(call.traversals),
            (call.batch, call.channels, call.states),
        )
        fresh = torch.zeros if _partial(call) else torch.empty

        def gradient_of(x: Tensor, shared: bool) -> Tensor:
            return fresh(x.shape, dtype=torch.float32 if shared and directions > 1 else x.dtype)

        du = gradient_of(call.u, call.u.shape[1] == 1)
        ddelta = gradient_of(call.delta, call.delta.shape[1] == 1)
        dz = None if call.z is None else gradient_of(call.z, True)
        db, dc = (fresh(scan.groups, *x.shape, dtype=torch.float32) for x in (call.B, call.C))
        ddecay = torch.empty(batch, directions, n, channels)
        dskip, dbias = torch.zeros(2, batch, directions, channels)
        kernel.set(grad=_directions(grad, call), du=du, ddelta=ddelta, dz=None if dz is None else dz[:, None])
        scan.saved, scan.db, scan.dc = states.data_ptr(), db.data_ptr(), dc.data_ptr()
        scan.db_directions, scan.dc_directions = call.B.shape[1], call.C.shape[1]
        scan.ddecay, scan.dskip, scan.dbias = ddecay.data_ptr(), dskip.data_ptr(), dbias.data_ptr()
        kernel.run("vssm_scan_backward")
        return ScanGradients(
            du.to(call.u.dtype),
            ddelta.to(call.delta.dtype),
            ddecay.sum(0).transpose(1, 2).contiguous(),
            _over_tasks(db).to(call.B.dtype),
            _over_tasks(dc).to(call.C.dtype),
            dskip.sum(0) if call.D is not None else None,
            None if dz is None else dz.to(call.u.dtype),
            dbias.sum(0) if call.delta_bias is not None else None,
        )


def _describe(call: ScanCall, isa: int) -> KernelCall:
    """Return the kernel call with everything that forward and backward share."""
    walks = (_Walk * len(call.traversals))()
    for to, walk in zip(walks, call.traversals, strict=True):
        to.start, to.inner_count, to.inner_stride = walk.start, walk.inner_count, walk.inner_stride
        to.outer_stride, to.length = walk.outer_stride, walk.length
    kernel = KernelCall(
        _Scan(
            batch=call.batch,
            directions=len(call.traversals),
            tokens=call.tokens,
            channels=call.channels,
            states=call.states,
            chunks=max(chunk_count(walk.length) for walk in call.traversals),
            groups=task_groups(call.batch, -(-call.channels // 16)),
            threads=torch.get_num_threads(),
            isa=isa,
            softplus=call.delta_softplus,
            merge=call.merge,
            partial=_partial(call),
            walks=walks,
        )
    )
    scan = kernel.structure
    scan.decay = kernel.pointer((call.A * _LOG2E).transpose(1, 2))
    scan.skip, scan.bias = kernel.pointer(call.D), kernel.pointer(call.delta_bias)
    kernel.set(u=call.u, delta=call.delta, b=call.B, c=call.C, z=None if call.z is None else call.z[:, None])
    return kernel


def _partial(call: ScanCall) -> bool:
    return any(walk.length < call.tokens for walk in call.traversals)


def _directions(y: Tensor, call: ScanCall) -> Tensor:
    """Return an output-shaped tensor as [B, K|1, L, C]."""
    return y[:, None] if call.merge else y


def _over_tasks(parts: Tensor) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
