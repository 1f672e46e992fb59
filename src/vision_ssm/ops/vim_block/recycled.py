"""Memory that autograd keeps from a forward to a backward pass, used again in the next step."""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor

__all__ = ["Recycler"]

FLOAT = 4  # bytes
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
