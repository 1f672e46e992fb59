"""GPUs, where kernels are written in Triton: whether they can run there, and what their launches share.

Importing this file loads neither triton nor a device.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "INTERPRET", "on_device_of", "processors", "why_not"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # compute capability: bfloat16 in hardware
INTERPRET = "TRITON_INTERPRET"
# Take CPU tensors and run the kernels in Triton's interpreter: for tests without a GPU. The environment variable
# TRITON_INTERPRET=1 must have been set before triton was first imported.
INTERPRETED = False
_INTERPRETED_PROCESSORS = 2  # what the interpreter is taken for


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Needs triton, a GPU of compute capability 8.0 or newer, and float32, bfloat16 or float16."""
    # What fails soonest is asked first: scans on the CPU ask as well.
    if INTERPRETED:
        if os.environ.get(INTERPRET) != "1":
            return f"its interpreter needs the environment variable {INTERPRET}=1 from the start"
        if device.type != "cpu":
            return f"the tensors are on {device}, the interpreter takes the CPU's"
    elif device.type != "cuda":
        return f"the tensors are on {device}, the kernels run on GPUs"
    if "triton" not in sys.modules and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not INTERPRETED:
        if not torch.cuda.is_available():
            return "torch finds no GPU on this machine"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
            found = ".".join(map(str, torch.cuda.get_device_capability(device)))
            return f"it needs compute capability {'.'.join(map(str, OLDEST))} or newer, and {device} has {found}"
    if dtype not in DTYPES:
        return f"it computes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    return None


def processors(x: Tensor) -> int:
    """How many multiprocessors x's device has."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else _INTERPRETED_PROCESSORS


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Make x's device the current one, where triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
