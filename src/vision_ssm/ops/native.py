"""The C++ kernel library (csrc/): finding it, checking that both sides agree, and what its functions share."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import zip_longest
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.gate import PLAIN, memory

__all__ = [
    "BEST",
    "INSTRUCTION_SETS",
    "LIBRARY",
    "MISSING",
    "PLAIN",
    "KernelCall",
    "TensorArgument",
    "are_plain",
    "denormals_flushed",
    "disagreement",
    "held_by_kernel",
    "instruction_set",
    "mirrors",
    "multiplies_tiles_of_bfloat16",
    "runnable",
    "task_groups",
    "why_not",
]

ABI_VERSION = 17
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512bf16")  # by the numbers of csrc/include/types.h
BEST = -1
ISA = BEST  # the instruction set that kernels use, by number; tests and benchmarks name one
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
MISSING_ISA, NO_MEMORY = 1, 2  # what a kernel returns (csrc/include/types.h)

_MIRRORS: dict[type[ctypes.Structure], str] = {}
_Mirror = TypeVar("_Mirror", bound=type[ctypes.Structure])


def mirrors(structure: str) -> Callable[[_Mirror], _Mirror]:
    """Say which C structure (csrc/include/) the decorated ctypes class mirrors; :func:`disagreement` checks it."""

    def register(mirror: _Mirror) -> _Mirror:
        _MIRRORS[mirror] = structure
        return mirror

    return register


@mirrors("vssm_tensor")
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
            library.vssm_layout.restype = ctypes.c_char_p
            library.vssm_constant.restype = ctypes.c_int64
            return library, None
        why_not = f"{name} is of another version of vision-ssm: reinstall"
    return None, why_not


LIBRARY, MISSING = _load()


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Tell why the kernels cannot run tensors of ``device`` and ``dtype``; None if they can.

    They need the built library, CPU tensors and float32 or bfloat16.
    """
    if LIBRARY is None:
        return MISSING
    if device.type != "cpu":
        return f"the tensors are on {device}, the kernel runs on the CPU"
    if dtype not in DTYPES:
        return f"it computes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if ISA != BEST and not LIBRARY.vssm_has_isa(ISA):
        return f"this machine or build lacks {INSTRUCTION_SETS[ISA]}"
    return None


def instruction_set() -> str | None:
    """Return the name of the instruction set that kernels use, or None without the library."""
    if LIBRARY is None:
        return None
    return INSTRUCTION_SETS[LIBRARY.vssm_best_isa() if ISA == BEST else ISA]


def runnable() -> list[str]:
    """Return the instruction sets that the library has and this machine runs, the best last."""
    return [] if LIBRARY is None else [name for at, name in enumerate(INSTRUCTION_SETS) if LIBRARY.vssm_has_isa(at)]


@cache
def disagreement(mirror: type[ctypes.Structure]) -> str | None:
    """Return where a ctypes class, or one that it holds or points to, differs from the library's structure, or None.

    Names, offsets and sizes of all fields are compared, once per class.
    """
    structure = _MIRRORS.get(mirror)
    if structure is None:
        return f"{mirror.__name__} does not say which structure it mirrors"
    told = LIBRARY and LIBRARY.vssm_layout(structure.encode())
    if not told:
        return f"there is no {structure}"
    size, *theirs = told.decode().split()
    places = ((name, getattr(mirror, name)) for name, *_ in mirror._fields_)
    ours = [f"{name}@{place.offset}+{place.size}" for name, place in places]
    for field, expected in zip_longest(theirs, ours, fillvalue="no field"):
        if field != expected:
            return f"{structure} has {field} where {expected} is expected"
    if int(size) != ctypes.sizeof(mirror):
        return f"{structure} takes {size} bytes where {ctypes.sizeof(mirror)} are expected"
    held = map(_structure_in, (field[1] for field in mirror._fields_))
    return next((found for kind in held if kind is not None and (found := disagreement(kind)) is not None), None)


def _structure_in(kind: type) -> type[ctypes.Structure] | None:
    """Return the structure that a field's type is, points to, or is an array of, if any."""
    while not issubclass(kind, ctypes.Structure):
        inner = getattr(kind, "_type_", None)  # a letter for simple types
        if not isinstance(inner, type):
            return None
        kind = inner
    return kind


_dtype, _is_cpu, _layout = attrgetter("dtype"), attrgetter("is_cpu"), attrgetter("layout")


def are_plain(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> bool:
    """Tell whether all are memory of that dtype that the kernels can read."""
    return (
        PLAIN.issuperset(map(type, tensors))
        and set(map(_dtype, tensors)) == {dtype}
        and all(map(_is_cpu, tensors))
        and set(map(_layout, tensors)) == {torch.strided}
        and not any(map(Tensor.is_neg, tensors))  # type: ignore[arg-type]
    )


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


def held_by_kernel(names: Sequence[str], weights: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Return weights of any shapes, contiguous, for as long as whose memory the kernel may read them.

    Raises:
        ShapeError: one is not memory of that dtype, or it is no dtype of the kernel's.
    """
    if dtype not in DTYPES:
        raise ShapeError(f"the kernel computes float32 and bfloat16, got {names[0]} in {dtype}")
    return [
        None if w is None else memory(name, w, w.shape, dtype).contiguous()
        for name, w in zip(names, weights, strict=True)
    ]


class KernelCall:
    """One call of a kernel: its C structure, and what must outlive it (``kept``)."""

    def __init__(self, structure: ctypes.Structure, kept: list[object] | None = None) -> None:
        self.structure = structure
        self._kept = kept or []

    def set(self, shape: tuple[int, int, int, int], dtype: torch.dtype, **tensors: Tensor | None) -> None:
        """Describe tensors [B, K, L, last], or [B, 1, L, last] or [B, L, last] for all directions; None is absent.

        A copy is made only if the last axis is strided.

        Raises:
            ShapeError: one is not memory of that shape and dtype.
        """
        if dtype not in DTYPES:
            raise ShapeError(f"the kernel computes float32 and bfloat16, got {', '.join(tensors)} in {dtype}")
        batch, directions, tokens, last = shape
        for name, x in tensors.items():
            if x is None:
                setattr(self.structure, name, TensorArgument())
                continue
            shared = x.dim() == 4 and x.shape[1] == 1
            wanted = (batch, tokens, last) if x.dim() == 3 else (batch, 1 if shared else directions, tokens, last)
            setattr(self.structure, name, self._describe(memory(name, x, wanted, dtype)))

    def pointer(self, name: str, x: Tensor | None, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
        """Return the address of a parameter or buffer of that shape, contiguous, kept alive with the call.

        Raises:
            ShapeError: it is not memory of that shape and dtype.
        """
        x = memory(name, x, shape, dtype).contiguous()
        self._kept.append(x)
        return x.data_ptr()

    def pointer_or_none(
        self, name: str, x: Tensor | None, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> int | None:
        """Return None for None, else what :meth:`pointer` does."""
        return None if x is None else self.pointer(name, x, shape, dtype)

    def run(self, function: str) -> None:
        """Call the kernel.

        Raises:
            BackendError: there is no library, its structures are not those mirrored here, it lacks the instruction set
                asked for, or memory is short.
        """
        if LIBRARY is not None and (fault := disagreement(type(self.structure))) is not None:
            raise BackendError(
                f"the C++ kernel cannot run: its library is of another version of vision-ssm ({fault}): reinstall"
            )
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
