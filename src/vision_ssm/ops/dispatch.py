"""One table for every operator: which backend runs it, and why not the others.

An operator is a folder of the same few files; a backend of it is one of them, loaded when it first runs:

    op.py         the public function, opening with its equation and shapes; asks :func:`choose`
    reference.py  the definition of correct in plain torch operations: runs on any device
    chunked.py    plain torch operations too, arranged for speed, where that takes another arrangement
    cpu.py        kernels in C++ (csrc/), reached through native.py
    triton.py     kernels in Triton, for GPUs (gpu.py); parts of it in files beside it
    contract.py   what all of them are given, where that is more than tensors

To add an operator, say ``NAME``:

1. ``ops/NAME/`` with ``op.py``, ``reference.py`` and what else it has; no backend imports another.
2. A row in ``_TABLE`` below: its backends, fastest first, the reference last. ``explain`` and ``vision-ssm doctor``
   then know it.
3. ``csrc/NAME/``, if it has kernels in C++.
4. ``tests/ops/NAME/``: every backend against the reference in float64, outputs and gradients.

All of it is new but the row.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ConfigError, VisionSSMNotice, suggestion
from vision_ssm.ops import gpu, native
from vision_ssm.ops.native import DTYPES, PLAIN, are_plain, multiplies_tiles_of_bfloat16
from vision_ssm.ops.transforms import transformed

__all__ = [
    "AUTO",
    "ENVIRONMENT_VARIABLE",
    "Backend",
    "BackendStatus",
    "available_backends",
    "choose",
    "explain",
    "has_kernels",
    "intercepted",
    "native_call_applies",
    "operators",
    "refuse_tracing",
    "without_autocast",
]

AUTO = "auto"
ENVIRONMENT_VARIABLE = "VISION_SSM_BACKEND"
REFERENCE = "reference"

# What each kind of backend needs, by the name of its file.
_NEEDS: dict[str, Callable[[torch.device, torch.dtype], str | None]] = {
    "triton": gpu.why_not,
    "cpu": native.why_not,
    "chunked": lambda device, dtype: None,
    REFERENCE: lambda device, dtype: None,
}


@dataclass(frozen=True)
class Backend:
    """One way to run one operator: the file called ``name`` in the operator's folder."""

    operator: str
    name: str

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run tensors of ``device`` and ``dtype``, or None if it can."""
        return _NEEDS[self.name](device, dtype)

    @cached_property
    def functions(self) -> ModuleType:
        """The file, loaded when first asked for: an import of the package loads no triton."""
        return import_module(f"vision_ssm.ops.{self.operator}.{self.name}")


# In order of preference. The reference is last: whatever the device and dtype, something runs.
_TABLE: dict[str, tuple[Backend, ...]] = {
    operator: tuple(Backend(operator, name) for name in names)
    for operator, names in {
        "scan": ("triton", "cpu", "chunked", REFERENCE),
        "conv": ("triton", "cpu", REFERENCE),
        "gla": ("triton", "cpu", "chunked", REFERENCE),
        "add_norm": ("triton", REFERENCE),
        "ssm": ("cpu", REFERENCE),
        "vim_block": ("cpu", REFERENCE),
        "gla_block": ("cpu", REFERENCE),
        "mlp": ("cpu", REFERENCE),
        "patch_embed": ("cpu", REFERENCE),
    }.items()
}


@dataclass(frozen=True)
class BackendStatus:
    """What :func:`explain` says of one backend."""

    name: str
    chosen: bool
    reason: str


def operators() -> list[str]:
    """Return the names of all operators."""
    return list(_TABLE)


def available_backends(operator: str = "scan") -> list[str]:
    """Return the names of an operator's backends, fastest first, whether or not they can run here.

    Raises:
        ConfigError: there is no such operator.
    """
    return [backend.name for backend in _of(operator)]


def requested(name: str = AUTO) -> str:
    """Return the backend asked for: ``name`` if it names one, else the environment variable, else 'auto'.

    Raises:
        ConfigError: no backend has that name.
    """
    wanted = name if name != AUTO else os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    if wanted != AUTO and wanted not in _NEEDS:
        source = "backend" if name != AUTO else ENVIRONMENT_VARIABLE
        raise ConfigError(
            f"{source} must be one of {', '.join([AUTO, *_NEEDS])}, got {wanted!r}.{suggestion(wanted, _NEEDS)}"
        )
    return wanted


def choose(operator: str, device: torch.device, dtype: torch.dtype, name: str = AUTO) -> Backend:
    """Return the backend of an operator for tensors of ``device`` and ``dtype``.

    Args:
        operator: a folder of ``ops``.
        device: where the tensors are.
        dtype: their floating dtype.
        name: a backend's name, or 'auto' for the environment variable's or, failing that, the fastest that can run.
            An operator without a backend of that name runs as its reference: to force the scan's 'chunked' is to leave
            all kernels alone.

    Raises:
        ConfigError: no backend has that name, or there is no such operator.
        BackendError: the named backend cannot run such tensors; the message says why.
    """
    backends, wanted = _of(operator), requested(name)
    if wanted != AUTO:
        for backend in backends:
            if backend.name == wanted:
                reason = backend.why_not(device, dtype)
                if reason is not None:
                    raise BackendError(
                        f"{operator} backend {wanted!r} cannot run: {reason}. Use 'auto' to let the device decide."
                    )
                return backend
        return backends[-1]
    backend = next(backend for backend in backends if backend.why_not(device, dtype) is None)
    if native.MISSING is not None and device.type == "cpu":
        _warn_once(native.MISSING)
    return backend


# Asked for its answer where a call is traced: tracing need not see through the properties of a device.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_kernels(operator: str, device: torch.device, *dtypes: torch.dtype) -> bool:
    """Tell whether kernels run an operator's tensors, which are of these dtypes, rather than its reference."""
    return all(choose(operator, device, dtype).name != REFERENCE for dtype in dtypes)


def explain(
    operator: str = "scan", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> list[BackendStatus]:
    """Tell for every backend of an operator whether it would run tensors of ``device`` and ``dtype``, and the reason.

    Raises:
        ConfigError: there is no such operator, or the environment variable names no backend.
    """
    backends, wanted = _of(operator), requested()
    device = torch.device(device)
    names = [backend.name for backend in backends]
    picked: str | None = None
    report = []
    if wanted != AUTO and wanted not in names:
        forced, because = REFERENCE, f"{ENVIRONMENT_VARIABLE}={wanted} asks for a backend that {operator} does not have"
    else:
        forced, because = wanted, "asked for by name"
    for backend in backends:
        reason = backend.why_not(device, dtype)
        if reason is None and forced not in (AUTO, backend.name):
            reason = f"{ENVIRONMENT_VARIABLE}={wanted} asks for another"
        elif reason is None and forced == AUTO and backend.name == REFERENCE and "chunked" in names:
            reason = "only runs when asked for by name"
        elif reason is None and picked is not None:
            reason = f"{picked} comes first"
        if reason is None:
            picked = backend.name
            reason = because if forced != AUTO else "the fastest that can run"
            report.append(BackendStatus(backend.name, True, reason))
        else:
            report.append(BackendStatus(backend.name, False, reason))
    return report


def native_call_applies(operator: str, x: Tensor, others: Sequence[Tensor]) -> bool:
    """Tell whether a C++ kernel may stand in for torch's products and what is around them, shapes aside.

    It may where no gradient is wanted, for plain tensors of one dtype, float32 or bfloat16, on the CPU where the kernel
    is the operator's backend, nothing is traced, watched or transformed, and autocast is off. Not where torch's
    products are faster: than the kernel's portable code, and for bfloat16 where the processor multiplies whole tiles of
    it (AMX).
    """
    if type(x) not in PLAIN or not x.is_cpu or x.numel() == 0 or x.dtype not in DTYPES:
        return False
    if torch.compiler.is_compiling() or intercepted() or torch.is_autocast_enabled("cpu"):
        return False
    tensors = (x, *others)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    if not are_plain(tensors, x.dtype):
        return False
    if x.dtype == torch.bfloat16 and multiplies_tiles_of_bfloat16():
        return False
    return choose(operator, x.device, x.dtype).name == "cpu" and native.instruction_set() != "portable"


def intercepted() -> bool:
    """Tell whether something watches or transforms operations, which a kernel would escape."""
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    return bool(modes or transformed() or torch._C._get_tracing_state())


def _of(operator: str) -> tuple[Backend, ...]:
    backends = _TABLE.get(operator)
    if backends is None:
        raise ConfigError(
            f"operator must be one of {', '.join(_TABLE)}, got {operator!r}.{suggestion(str(operator), _TABLE)} "
            "It comes first: explain('scan', device, dtype), choose('scan', device, dtype, name)."
        )
    return backends


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


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast out of the backends: it would round a float32 state to half precision in their products."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def refuse_tracing(operator: str) -> None:
    """Raise BackendError within torch.jit.trace, which would fail with an error of its own inside."""
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        raise BackendError(
            f"{operator} cannot be traced by torch.jit.trace, nor by what builds on it: TorchScript has no calls with "
            "lists of sizes. torch.export and torch.compile see through it; see docs/backends.md, Export."
        )
