"""A time limit for processes that wait for each other: one that makes no progress ends itself and says where all were.

A process that waits inside an exchange cannot look at a clock, so a thread does. It counts its own seconds: time in
which the whole process was stopped does not count.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol

__all__ = ["NO_PROGRESS", "Notes", "Watch"]

NO_PROGRESS = 70
"""Exit code of a process that its watch ended."""

TICK = 1.0
SHOWN = 16
"""So many processes are listed; of more, those that are behind."""


class Notes(Protocol):
    """Where processes leave short texts for each other, such as a store of torch.distributed."""

    def set(self, key: str, value: str) -> None:  # noqa: D102
        ...

    def get(self, key: str) -> bytes:  # noqa: D102
        ...

    def check(self, keys: list[str]) -> bool:  # noqa: D102
        ...


class Watch:
    """Looks after one process while ``with`` lasts.

    Args:
        rank: of this process.
        world: number of processes.
        seconds: without a call of `at` after which the process ends, with exit code 70 and a message on standard error.
        store: where the processes leave notes for each other; None: the message tells of this process only.
    """

    def __init__(self, rank: int, world: int, seconds: float, store: Notes | None) -> None:
        self._rank, self._world, self._seconds, self._store = rank, world, seconds, store
        self._place, self._told = "starting", ""
        self._waited = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        self._over.clear()
        self._waited = 0.0
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def at(self, place: str) -> None:
        """Note progress, and where this process is now."""
        self._place, self._waited = place, 0.0

    def _look(self) -> None:
        tick = min(TICK, self._seconds / 4)
        while not self._over.wait(tick):
            self._waited += tick
            self._tell()
            if self._waited >= self._seconds:
                os.write(2, f"error: {self._message()}\n".encode())
                os._exit(NO_PROGRESS)

    def _tell(self) -> None:
        if self._store is not None and self._told != self._place:
            with contextlib.suppress(RuntimeError):  # whoever keeps the store is gone: others will say so
                self._store.set(f"watch/{self._rank}", self._place)
                self._told = self._place

    def _message(self) -> str:
        own = (
            f"rank {self._rank} of {self._world} has made no progress for {self._seconds:g} s (run.timeout): "
            f"it was at {self._place}."
        )
        others = self._others()
        if len(others) > SHOWN:
            others = {rank: place for rank, place in others.items() if place != self._place}
        where = "; ".join(f"rank {rank} at {place}" for rank, place in list(others.items())[:SHOWN])
        return f"{own} When last heard of: {where}." if where else own

    def _others(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for rank in range(self._world) if self._store is not None else ():
            with contextlib.suppress(RuntimeError):
                if rank != self._rank and self._store is not None and self._store.check([f"watch/{rank}"]):
                    found[rank] = self._store.get(f"watch/{rank}").decode()
        return found
