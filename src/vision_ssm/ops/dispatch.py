"""Which backend runs a scan: the tensor's device decides, a forced backend either runs or says why not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ConfigError, VisionSSMNotice, suggestion
from vision_ssm.ops.native import DTYPES, are_plain, multiplies_tiles_of_bfloat16
from vision_ssm.ops.scan.chunked import ChunkedBackend
from vision_ssm.ops.scan.contract import Backend
from vision_ssm.ops.scan.cpu import CpuBackend
from vision_ssm.ops.scan.reference import ReferenceBackend
from vision_ssm.ops.scan.triton import TritonBackend

__all__ = [
    "AUTO",
    "ENVIRONMENT_VARIABLE",
    "BackendStatus",
    "available_backends",
    "choose",
    "explain",
    "inference_call_applies",
    "intercepted",
]

AUTO = "auto"
ENVIRONMENT_VARIABLE = "VISION_SSM_BACKEND"

_CPU = CpuBackend()
# In order of preference; the reference is never chosen by itself.
_BACKENDS: tuple[Backend, ...] = (TritonBackend(), _CPU, ChunkedBackend(), ReferenceBackend())
_ON_REQUEST_ONLY = frozenset({"reference"})


@dataclass(frozen=True)
class BackendStatus:
    """What :func:`explain` says of one backend."""

    name: str
    chosen: bool
    reason: str


def available_backends() -> list[str]:
    """Return the names of all backends, fastest first, whether or not they can run here."""
    return [backend.name for backend in _BACKENDS]


def requested(name: str = AUTO) -> str:
    """Return the backend asked for: ``name`` if it names one, else the environment variable, else 'auto'.

    Raises:
        ConfigError: no backend has that name.
    """
    wanted = name if name != AUTO else os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    if wanted == AUTO:
        return AUTO
    names = available_backends()
    source = "backend" if name != AUTO else ENVIRONMENT_VARIABLE
    if wanted not in names:
        raise ConfigError(
            f"{source} must be one of {', '.join([AUTO, *names])}, got {wanted!r}.{suggestion(wanted, names)}"
        )
    return wanted


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend for tensors of ``device`` and ``dtype``.

    Args:
        name: a backend's name, or 'auto' for the environment variable's or, failing that, the fastest that can run.
        device: where the tensors are.
        dtype: their floating dtype.

    Raises:
        ConfigError: no backend has that name.
        BackendError: the named backend cannot run such tensors; the message says why.
    """
    wanted = requested(name)
    if wanted != AUTO:
        backend = next(backend for backend in _BACKENDS if backend.name == wanted)
        reason = backend.why_not(device, dtype)
        if reason is not None:
            raise BackendError(f"scan backend {wanted!r} cannot run: {reason}. Use 'auto' to let the device decide.")
        return backend
    backend = next(b for b in _BACKENDS if b.name not in _ON_REQUEST_ONLY and b.why_not(device, dtype) is None)
    if device.type == "cpu" and backend is not _CPU and _CPU.missing is not None:
        _warn_once(_CPU.missing)
    return backend


def explain(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> list[BackendStatus]:
    """Tell for every backend whether it would run tensors of ``device`` and ``dtype``, and the reason."""
    device = torch.device(device)
    wanted = requested()
    picked: str | None = None
    report = []
    for backend in _BACKENDS:
        reason = backend.why_not(device, dtype)
        if reason is None and wanted not in (AUTO, backend.name):
            reason = f"{ENVIRONMENT_VARIABLE}={wanted} asks for another"
        elif reason is None and backend.name in _ON_REQUEST_ONLY and wanted == AUTO:
            reason = "only runs when asked for by name"
        elif reason is None and picked is not None:
            reason = f"{picked} comes first"
        if reason is None:
            picked = backend.name
            reason = "asked for by name" if wanted != AUTO else "the fastest that can run"
            report.append(BackendStatus(backend.name, True, reason))
        else:
            report.append(BackendStatus(backend.name, False, reason))
    return report


def inference_call_applies(x: Tensor, others: Sequence[Tensor]) -> bool:
    """Tell whether one call of the C++ kernel may stand in for torch's products and what is around them, shapes aside.

    It may where no gradient is wanted, for plain tensors of one dtype, float32 or bfloat16, on the CPU where the kernel
    is the backend, nothing is traced, watched or transformed, and autocast is off. Not where torch's products are
    faster: than the kernel's portable code, and for bfloat16 where the processor multiplies whole tiles of it (AMX).
    """
    if type(x) is not Tensor or not x.is_cpu or x.numel() == 0 or x.dtype not in DTYPES:
        return False
    if torch.compiler.is_compiling() or intercepted() or torch.is_autocast_enabled("cpu"):
        return False
    tensors = (x, *others)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    if not are_plain(tensors, x.dtype) or not all(t.layout is torch.strided and not t.is_neg() for t in tensors):
        return False
    if x.dtype == torch.bfloat16 and multiplies_tiles_of_bfloat16():
        return False
    backend = choose(AUTO, x.device, x.dtype)
    return isinstance(backend, CpuBackend) and backend.instruction_set != "portable"


def intercepted() -> bool:
    """Tell whether something watches or transforms operations, which a kernel would escape."""
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    transforms = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return bool(modes or transforms or torch._C._get_tracing_state())


_warned = False


def _warn_once(reason: str) -> None:
    global _warned  # noqa: PLW0603 -- one notice per process
    if not _warned:
        _warned = True
        warnings.warn(
            f"The C++ scan kernel is not available ({reason}); using the pure-torch scan, which is slower. "
            "Install a C++ compiler and reinstall vision-ssm; `vision-ssm doctor` shows the state.",
            VisionSSMNotice,
            stacklevel=2,
        )
