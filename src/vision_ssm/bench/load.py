"""How much of the machine others use while something is timed, and what that says about the figures."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["LoadWatch", "doubts", "is_busy"]

STAT = Path("/proc/stat")
IDLE = (3, 4)  # of the columns of a line: idle, and waiting for a disk
GUEST = 8  # what comes from there on is counted in the columns before as well

TOLERATED = 0.1
"""Cores of others per thread that is timed, above which figures are doubted."""


class LoadWatch:
    """Counts, from when it is made, the processor time that other processes take. Linux tells it; elsewhere nobody."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = time.monotonic(), _busy_seconds(), time.process_time()

    def cores_of_others(self) -> float | None:
        """Return how many cores others kept busy on average since then; None where the system does not tell."""
        wall, busy = time.monotonic() - self._wall, _busy_seconds()
        if busy is None or self._busy is None or wall <= 0:
            return None
        return max(0.0, busy - self._busy - (time.process_time() - self._own)) / wall


def is_busy(others: float | None, threads: int, cores: int | None = None) -> bool:
    """Tell whether others took so much that ``threads`` could not have had a core each.

    Args:
        others: cores that others kept busy; None where nobody knows, which is not held against the figures.
        threads: that were timed.
        cores: of the whole machine; None for this one.
    """
    free = max(0, (cores or os.cpu_count() or threads) - threads)
    return others is not None and others > free + TOLERATED * threads


def doubts(share: float | None, others: float | None, threads: int) -> list[str]:
    """Say, in a sentence each, why a figure should not be believed; empty where nothing speaks against it."""
    found = []
    if share is not None and share > 1:
        found.append(
            f"{share:.0%} of the ceiling cannot be: the matrix product that stands for it was disturbed, or torch's "
            "does not use all of this processor; the share is no result"
        )
    if is_busy(others, threads):
        found.append(f"other processes kept {others:.1f} cores busy meanwhile; repeat it on a quiet machine")
    return found


def _busy_seconds() -> float | None:
    """Processor time that all cores have spent at work, in seconds."""
    try:
        line = STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
        ticks = [int(column) for column in line[:GUEST]]
        return sum(tick for at, tick in enumerate(ticks) if at not in IDLE) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return None
