"""Tensors between pages that must not be touched: one read beyond their memory ends the process."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

__all__ = ["Guards"]

PAGE = mmap.PAGESIZE
NO_ACCESS, READ, WRITE = 0, 1, 2


class Guards:
    """Puts tensors between guard pages, for as long as it lives; what is left of their pages is NaN."""

    def __init__(self) -> None:
        self._areas: list[mmap.mmap] = []

    def around(self, x: Tensor, *, at_end: bool) -> Tensor:
        """Return x with its memory touching the page after it, or the one before it; x itself where it has none."""
        lies = x.is_cpu and x.layout is torch.strided and x.numel() > 0 and not (x.is_neg() or x.is_conj())
        if not lies or not sys.platform.startswith("linux"):
            return x
        extent = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
        size = extent * x.itemsize
        room = -(-size // PAGE) * PAGE
        area = mmap.mmap(-1, room + 2 * PAGE)
        self._areas.append(area)
        base = ctypes.addressof(ctypes.c_char.from_buffer(area))
        ctypes.memset(base + PAGE, 0xFF, room)
        for page in (base, base + PAGE + room):
            if ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), NO_ACCESS) != 0:
                raise OSError("the guard pages could not be protected")
        start = base + PAGE + (room - size if at_end else 0)
        flat = torch.frombuffer((ctypes.c_char * size).from_address(start), dtype=x.dtype)
        flat.copy_(x.detach().as_strided((extent,), (1,), x.storage_offset()))
        return flat.as_strided(x.shape, x.stride())
