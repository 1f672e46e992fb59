"""Contenders of a comparison, measured in turn: seconds of a step, and peak memory in a process of its own.

The medians of the rounds are kept, so that a machine whose speed drifts treats all alike. A contender that fails keeps
the reason and leaves the others alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vision_ssm.bench.subject import FAILURES, reason, synchronise

__all__ = ["arguments", "compared", "peak", "words"]


def arguments(about: str | None, contenders: Iterable[str], rounds: int) -> argparse.ArgumentParser:
    """Return a parser of what such comparisons have in common; ``--memory-of`` is for the processes of `peak`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--mode", choices=["inference", "training"], default="inference")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--memory-of", choices=list(contenders), help=argparse.SUPPRESS)
    return parser


def peak(arguments: Sequence[str]) -> dict[str, Any]:
    """What a new Python process with these arguments prints as JSON: the peak memory of a step."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": f"the process ended with status {done.returncode}, of too little memory perhaps"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(
    contenders: Mapping[str, Callable[[], Callable[[], None]]],
    peaks: Callable[[str], dict[str, Any]],
    *,
    rounds: int,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Measure steps, which the contenders' functions prepare; ``peaks`` tells one's peak memory by its name."""
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name, prepare in contenders.items():
        rows[name] = peaks(name)
        try:
            steps[name] = prepare()
            _seconds(steps[name], device)  # takes memory from the system, chooses kernels
        except FAILURES as error:
            steps.pop(name, None)
            rows[name] = {"error": reason(error)}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            samples[name].append(_seconds(step, device))
    for name, taken in samples.items():
        rows[name] |= {"seconds": statistics.median(taken), "samples": taken}
    return rows


def words(name: str, found: Mapping[str, Any]) -> str:
    """One contender's row for people."""
    memory = f"{found['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in found else "memory not measured"
    return f"{name} {found['seconds'] * 1e3:.1f} ms, {memory};" if "seconds" in found else f"{name} failed;"


def _seconds(step: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - started
