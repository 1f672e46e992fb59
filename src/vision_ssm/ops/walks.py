"""Traversals in the form that the C++ kernels take (csrc/include/types.h)."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from vision_ssm.ops.native import mirrors
from vision_ssm.ops.traversal import WORDS, Traversal, flatten

__all__ = ["Walk", "kernel_walks"]


@mirrors("vssm_walk")
class Walk(ctypes.Structure):
    """A traversal in the kernel's form (vssm_walk)."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("start", "inner_count", "inner_stride", "outer_stride", "length", "reset"),
            *("write_start", "write_inner_stride", "write_outer_stride"),
        )
    )


@lru_cache(maxsize=256)
def kernel_walks(traversals: tuple[Traversal, ...]) -> ctypes.Array[Walk]:
    """Return the walks in the kernel's form."""
    words = flatten(traversals)
    return (Walk * len(traversals))(*(Walk(*words[at : at + WORDS]) for at in range(0, len(words), WORDS)))
