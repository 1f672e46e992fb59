"""The C++ kernel library (csrc/): finding it, and what its functions share."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from vision_ssm.errors import BackendError

__all__ = [
    "BEST",
    "INSTRUCTION_SETS",
    "LIBRARY",
    "MISSING",
    "KernelCall",
    "TensorArgument",
    "are_plain",
    "denormals_flushed",
    "multiplies_tiles_of_bfloat16",
    "task_groups",
]

ABI_VERSION = 15
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512bf16")  # by the numbers of csrc/scan.h
BEST = -1
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
MISSING_ISA, NO_MEMORY = 1, 2  # what a kernel returns (csrc/scan.h)


class TensorArgument(ctypes.Structure):
    """A tensor [B, K|1, L, last] with a contiguous last axis."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("direction_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the kernel library, or None and why there is none.

    Torch is imported before, so that the kernels join torch's OpenMP runtime and obey torch.set_num_threads. An
    editable install keeps the library apart from the sources, so the package's whole search path is looked through.
    """
    name = "libvision_ssm_cpu.dll" if sys.platform == "win32" else "libvision_ssm_cpu.so"
    why_not = "it was not built: the install found no working C++ compiler"
    for folder in sys.modules["vision_ssm"].__path__:
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            why_not = f"{name} does not load: {error}"
            continue
        if library.vssm_abi_version() == ABI_VERSION:
            return library, None
        why_not = f"{name} is of another version of vision-ssm: reinstall"
    return None, why_not


LIBRARY, MISSING = _load()

_PLAIN = frozenset((Tensor, torch.nn.Parameter))  # subclasses need not have memory
_dtype, _is_cpu = attrgetter("dtype"), attrgetter("is_cpu")


def are_plain(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> bool:
    """Tell whether all are memory of that dtype that the kernels can read."""
    return _PLAIN.issuperset(map(type, tensors)) and set(map(_dtype, tensors)) == {dtype} and all(map(_is_cpu, tensors))


def multiplies_tiles_of_bfloat16() -> bool:
    """Tell whether the processor does (AMX): then torch's products of bfloat16 are faster than the kernels'."""
    return bool(torch.cpu._is_amx_tile_supported())


def task_groups(batch: int, pieces: int) -> int:
    """Return into how many tasks to split one image of ``batch``: two per thread in all, at most ``pieces`` each."""
    threads = torch.get_num_threads()
    return 1 if threads == 1 else max(1, min(pieces, -(-2 * threads // max(1, batch))))


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Let the threads of torch's operations take denormal numbers for zero, as the kernels do.

    Gradients fade along a sequence down to such numbers, which some processors compute a hundred times slower; what
    that costs is in docs/performance.md. ``torch.set_flush_denormal`` reaches the calling thread only. Do not nest.
    """
    if LIBRARY is None:
        yield
        return
    threads = torch.get_num_threads()
    LIBRARY.vssm_flush_denormals(threads, 1)
    try:
        yield
    finally:
        LIBRARY.vssm_flush_denormals(threads, 0)


class KernelCall:
    """One call of a kernel: its C structure, and what must outlive it (``kept``)."""

    def __init__(self, structure: ctypes.Structure, kept: list[object] | None = None) -> None:
        self.structure = structure
        self._kept = kept or []

    def set(self, **tensors: Tensor | None) -> None:
        """Describe tensors [B, K|1, L, last] or [B, L, last]; a copy is made only if the last axis is strided."""
        for name, x in tensors.items():
            setattr(self.structure, name, TensorArgument() if x is None else self._describe(x))

    def pointer(self, x: Tensor | None) -> int | None:
        """Return the address of a contiguous parameter or buffer, kept alive with the call."""
        if x is None:
            return None
        x = x.contiguous()
        self._kept.append(x)
        return x.data_ptr()

    def run(self, function: str) -> None:
        """Call the kernel.

        Raises:
            BackendError: there is no library, it lacks the instruction set asked for, or memory is short.
        """
        status = MISSING_ISA if LIBRARY is None else getattr(LIBRARY, function)(ctypes.byref(self.structure))
        if status == MISSING_ISA:
            raise BackendError(f"the C++ kernel cannot run: {MISSING or 'this machine lacks the instruction set'}")
        if status == NO_MEMORY:
            raise BackendError(
                "the C++ kernel cannot run: there is not enough memory for its working space; "
                "use a smaller batch or image"
            )

    def _describe(self, x: Tensor) -> TensorArgument:
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            x = x.contiguous()
        self._kept.append(x)
        batch, *direction, token, _ = x.stride()
        step = direction[0] if direction and x.shape[1] > 1 else 0
        return TensorArgument(x.data_ptr(), batch, step, token, DTYPES[x.dtype])
