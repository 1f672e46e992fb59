"""What the GPU at hand can do at most, as the floors of benchmarks/gpu.py take it: copies and exponentials.

Importing this loads triton and needs a GPU to be of use.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import triton
import triton.language as tl

LENGTH, ROUNDS = 4096, 512  # elements of a program, exponentials of each


@triton.jit
def _exponentials(x, LENGTH: tl.constexpr, ROUNDS: tl.constexpr):
    at = x + tl.program_id(0).to(tl.int64) * LENGTH + tl.arange(0, LENGTH)
    value = tl.load(at)
    for _ in range(ROUNDS):
        value = tl.exp2(-value)
    tl.store(at, value)


def seconds(run: Callable[[], object], rounds: int = 10, least: float = 0.02) -> list[float]:
    """Seconds per call by CUDA events: ``rounds`` samples, each over calls that take ``least`` seconds together."""

    def sample(calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    run()  # compiles
    calls = max(1, round(least / sample(3)))
    return [sample(calls) for _ in range(rounds)]


def copied_bytes_per_second() -> float:
    """Bytes read and written per second in copies of 1 GiB."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / statistics.median(seconds(lambda: target.copy_(source)))


def exponentials_per_second() -> float:
    """2^x per second in float32, in chains that leave memory alone."""
    programs = 32 * torch.cuda.get_device_properties("cuda").multi_processor_count
    x = torch.rand(programs * LENGTH, device="cuda")
    took = seconds(lambda: _exponentials[(programs,)](x, LENGTH, ROUNDS, num_warps=8, enable_fp_fusion=True))
    return programs * LENGTH * ROUNDS / statistics.median(took)
