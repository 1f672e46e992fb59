"""The C++ kernels (csrc/) behind ctypes: float32 and bfloat16 on the CPU, forward and backward."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch
from torch import Tensor

from vision_ssm.errors import BackendError
from vision_ssm.ops.contract import CHUNK, ScanCall, ScanGradients, saved_states_shape

__all__ = ["INSTRUCTION_SETS", "CpuBackend"]

ABI_VERSION = 1
INSTRUCTION_SETS = ("portable", "avx2", "avx512")  # by the numbers of csrc/scan.h
_BEST = -1
_LOG2E = 1.4426950408889634
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("direction_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


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
        *((n, _Tensor) for n in ("u", "delta", "b", "c", "z")),
        ("saved", ctypes.c_void_p),
        *((n, _Tensor) for n in ("y", "sum", "grad", "du", "ddelta", "dz")),
        *((n, ctypes.c_void_p) for n in ("db", "dc")),
        *((n, ctypes.c_int64) for n in ("db_directions", "dc_directions")),
        *((n, ctypes.c_void_p) for n in ("ddecay", "dskip", "dbias")),
    )


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the kernel library, or None and why there is none.

    Torch is imported before, so that the kernels join torch's OpenMP runtime and obey torch.set_num_threads. An
    editable install keeps the library apart from the sources, so the package's whole search path is looked through.
    """
    suffix = {"win32": "dll", "darwin": "so"}.get(sys.platform, "so")
    package = sys.modules["vision_ssm"]
    for folder in package.__path__:
        path = Path(folder) / f"libvision_ssm_cpu.{suffix}"
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            return None, f"{path.name} does not load: {error}"
        for function in (library.vssm_scan_forward, library.vssm_scan_backward):
            function.argtypes, function.restype = [ctypes.POINTER(_Scan)], ctypes.c_int
        if library.vssm_abi_version() != ABI_VERSION:
            return None, f"{path.name} is of another version of vision-ssm: reinstall"
        return library, None
    return None, "it was not built: the install found no working C++ compiler"


_LIBRARY, _MISSING = _load()


class CpuBackend:
    """Compiled kernels; the best instruction set of the machine, or the one named."""

    name = "cpu"

    def __init__(self, instruction_set: str | None = None) -> None:
        self.missing = _MISSING
        self._isa = _BEST if instruction_set is None else INSTRUCTION_SETS.index(instruction_set)

    @property
    def instruction_set(self) -> str | None:
        """The instruction set that runs here, or None without the library."""
        if _LIBRARY is None:
            return None
        return INSTRUCTION_SETS[_LIBRARY.vssm_best_isa() if self._isa == _BEST else self._isa]

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Needs the built library, CPU tensors and float32 or bfloat16."""
        if _LIBRARY is None:
            return self.missing
        if device.type != "cpu":
            return f"the tensors are on {device}, the kernel runs on the CPU"
        if dtype not in _DTYPES:
            return f"it computes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        if self._isa != _BEST and not _LIBRARY.vssm_has_isa(self._isa):
            return f"this machine or build lacks {INSTRUCTION_SETS[self._isa]}"
        return None

    def forward(self, call: ScanCall, save_states: bool) -> tuple[Tensor, Tensor]:
        """Run the forward kernel."""
        y = call.output()
        states = call.A.new_empty(saved_states_shape(call)) if save_states else call.A.new_empty(0)
        work = _Work(call, self._isa)
        if work.partial:
            y.zero_()
        total = y
        if call.merge and y.dtype != torch.float32 and (work.partial or len(call.traversals) > 1):
            total = (
                torch.zeros_like(y, dtype=torch.float32) if work.partial else torch.empty_like(y, dtype=torch.float32)
            )
        work.set(y=_directions(y, call), sum=_directions(total, call))
        work.scan.saved = states.data_ptr() if save_states else None
        work.run("vssm_scan_forward")
        return y, states

    def backward(self, call: ScanCall, states: Tensor, grad: Tensor) -> ScanGradients:
        """Run the backward kernel and sum its per-task parts, always in the same order."""
        work = _Work(call, self._isa)
        directions, (batch, channels, n) = (
            len(call.traversals),
            (call.batch, call.channels, call.states),
        )
        fresh = torch.zeros if work.partial else torch.empty

        def gradient_of(x: Tensor, shared: bool) -> Tensor:
            return fresh(x.shape, dtype=torch.float32 if shared and directions > 1 else x.dtype)

        du = gradient_of(call.u, call.u.shape[1] == 1)
        ddelta = gradient_of(call.delta, call.delta.shape[1] == 1)
        dz = None if call.z is None else gradient_of(call.z, True)
        db, dc = (fresh(work.scan.groups, *x.shape, dtype=torch.float32) for x in (call.B, call.C))
        ddecay = torch.empty(batch, directions, n, channels)
        dskip, dbias = torch.zeros(2, batch, directions, channels)
        work.set(grad=_directions(grad, call), du=du, ddelta=ddelta, dz=None if dz is None else dz[:, None])
        work.keep(states, db, dc, ddecay, dskip, dbias)
        scan = work.scan
        scan.saved, scan.db, scan.dc = states.data_ptr(), db.data_ptr(), dc.data_ptr()
        scan.db_directions, scan.dc_directions = call.B.shape[1], call.C.shape[1]
        scan.ddecay, scan.dskip, scan.dbias = ddecay.data_ptr(), dskip.data_ptr(), dbias.data_ptr()
        work.run("vssm_scan_backward")
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


class _Work:
    """The C structure of one call, and the tensors that must outlive it."""

    def __init__(self, call: ScanCall, isa: int) -> None:
        self._kept: list[Tensor] = []
        walks = (_Walk * len(call.traversals))(
            *((w.start, w.inner_count, w.inner_stride, w.outer_stride, w.length) for w in call.traversals)
        )
        self.partial = any(walk.length < call.tokens for walk in call.traversals)
        threads = torch.get_num_threads()
        blocks = max(1, -(-call.channels // 16))
        # Images are tasks of their own; a small batch also splits the channels, so that every thread gets two tasks.
        groups = 1 if threads == 1 else max(1, min(blocks, -(-2 * threads // max(1, call.batch))))
        decay = (call.A * _LOG2E).transpose(1, 2).contiguous()
        self.scan = _Scan(
            batch=call.batch,
            directions=len(call.traversals),
            tokens=call.tokens,
            channels=call.channels,
            states=call.states,
            chunks=max(-(-walk.length // CHUNK) for walk in call.traversals),
            groups=groups,
            threads=threads,
            isa=isa,
            softplus=call.delta_softplus,
            merge=call.merge,
            partial=self.partial,
            walks=walks,
            decay=self._pointer(decay),
            skip=self._pointer(call.D),
            bias=self._pointer(call.delta_bias),
        )
        self.set(u=call.u, delta=call.delta, b=call.B, c=call.C, z=None if call.z is None else call.z[:, None])

    def set(self, **tensors: Tensor | None) -> None:
        """Describe tensors [B, K|1, L, last] to the kernel; a copy is made only if the last axis is strided."""
        for name, x in tensors.items():
            setattr(self.scan, name, _Tensor() if x is None else self._describe(x))

    def keep(self, *tensors: Tensor) -> None:
        """Hold tensors whose addresses the structure carries."""
        self._kept += tensors

    def run(self, function: str) -> None:
        """Call the kernel."""
        if _LIBRARY is None or getattr(_LIBRARY, function)(ctypes.byref(self.scan)):
            raise BackendError(f"scan backend 'cpu' cannot run: {_MISSING or 'the instruction set is not available'}")

    def _describe(self, x: Tensor) -> _Tensor:
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            x = x.contiguous()
        self._kept.append(x)
        batch, direction, token, _ = x.stride()
        return _Tensor(x.data_ptr(), batch, direction if x.shape[1] > 1 else 0, token, _DTYPES[x.dtype])

    def _pointer(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        x = x.contiguous()
        self._kept.append(x)
        return x.data_ptr()


def _directions(y: Tensor, call: ScanCall) -> Tensor:
    """Return an output-shaped tensor as [B, K|1, L, C]."""
    return y[:, None] if call.merge else y


def _over_tasks(parts: Tensor) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
