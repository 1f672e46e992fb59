"""Memory of training that is used again in the next step, and the way to give it back."""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import weakref
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Recycler", "Scratch", "recycler", "release_memory", "scratch"]

FLOAT = 4  # bytes
MOST_IDLE = 2**29  # bytes that what autograd keeps may leave behind
MOST_OF_A_BUFFER = 2**25  # bytes
MOST_SIZES = 32  # that are waited for: streams of every length would leave more and more behind


class Recycler:
    """Lends float32 memory, which comes back when the last tensor in it is gone.

    The system clears every page that a process gets anew, and an allocator that returns what a backward pass frees gets
    the same pages anew in every step: beside a small network that takes as long as a twentieth of it.

    Args:
        most_idle: bytes that may lie idle; beyond them, what comes back is freed.
    """

    def __init__(self, most_idle: int) -> None:
        self._most_idle = most_idle
        self._idle: dict[int, list[Tensor]] = {}

    def take(self, count: int) -> Tensor:
        """Return a tensor [count] with any values."""
        if count == 0:
            return torch.empty(0, dtype=torch.float32, device="cpu")
        waiting = self._idle.get(count)
        # Asking first would be one moment too early: another thread, or the collector, may come in between.
        try:
            memory = waiting.pop() if waiting else None
        except IndexError:
            memory = None
        if memory is None:
            memory = torch.empty(count, dtype=torch.float32, device="cpu")
        loan = (ctypes.c_float * count).from_address(memory.data_ptr())
        weakref.finalize(loan, self._put, memory).atexit = False
        return torch.frombuffer(loan, dtype=torch.float32)

    def idle_bytes(self) -> int:
        """Return how much memory lies idle."""
        return FLOAT * sum(count * len(waiting) for count, waiting in list(self._idle.items()))

    def _put(self, memory: Tensor) -> None:
        count = memory.numel()
        if FLOAT * count > self._most_idle:
            return
        if self.idle_bytes() + FLOAT * count > self._most_idle or len(self._idle) > MOST_SIZES:
            for other in list(self._idle):  # sizes that nobody asks for any more, perhaps
                if other != count:
                    self._idle.pop(other, None)
        if self.idle_bytes() + FLOAT * count <= self._most_idle:
            self._idle.setdefault(count, []).append(memory)

    def release(self) -> int:
        """Free what lies idle; return how many bytes that is."""
        freed = 0
        for count in list(self._idle):
            freed += FLOAT * count * len(self._idle.pop(count, ()))
        return freed


class _Buffers(dict[str, Tensor]):
    """One thread's."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Scratch(threading.local):
    """Memory for what lives within one call, kept from block to block, each thread's its own."""

    _threads: ClassVar[weakref.WeakSet[_Buffers]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._buffers = _Buffers()
        self._threads.add(self._buffers)

    def take(self, name: str, *shape: int) -> Tensor:
        """Return float32 memory of that shape; what an earlier taker of the name had is overwritten."""
        count = math.prod(shape)
        buffer = self._buffers.pop(name, None)
        if buffer is None or buffer.numel() < count:
            buffer = torch.empty(count, dtype=torch.float32, device="cpu")
        if FLOAT * count <= MOST_OF_A_BUFFER:
            self._buffers[name] = buffer
        return buffer[:count].view(shape)

    def release(self) -> int:
        """Free the buffers of all threads; return how many bytes they are."""
        freed = 0
        for buffers in list(self._threads):
            for name in list(buffers):
                buffer = buffers.pop(name, None)
                freed += 0 if buffer is None else FLOAT * buffer.numel()
        return freed


recycler, scratch = Recycler(MOST_IDLE), Scratch()


def release_memory() -> int:
    """Give back the memory that training on the CPU keeps from one step to the next: up to 512 MiB.

    What a graph still needs is left alone, and comes back to be kept when that graph is gone. The next step takes
    memory anew, which costs it a few percent of its time.

    Returns:
        How many bytes were kept. With glibc, the C library is asked to return them to the system at once.
    """
    freed = recycler.release() + scratch.release()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
    return freed
