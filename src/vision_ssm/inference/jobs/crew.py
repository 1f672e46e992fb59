"""Who does the pieces of a job, and what happens when one of them dies: the same for processes and for a cluster.

A crew hires workers, hands them pieces and reports what became of them; `carry_out` decides. It writes every file, and
the workers none: so the folder need not be seen by other machines, and a worker that was given up and lives on cannot
write a shard a second time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vision_ssm.errors import DataError
from vision_ssm.inference.jobs.plan import Piece

__all__ = ["AnyBench", "AnyWork", "Crew", "Report", "carry_out"]

LOSSES = 3
"""So many workers may end during the same piece, or one after the other before they have begun."""


class AnyBench(Protocol):
    """What a worker opens once and does all its pieces with."""

    def content(self, piece: Piece) -> bytes:
        """Do a piece and return the content of its file."""


class AnyWork(Protocol):
    """What is to be done, as it travels to the workers."""

    def open(self, device: str | None = None) -> AnyBench:
        """Open what the work takes, such as the model, on a device."""


@dataclass(frozen=True)
class Report:
    """What a worker says, or what is said of it.

    Attributes:
        worker: its number.
        content: of the file of its piece; None where it has just become ready.
        gone: why it is no more; empty while it is there.
        error: what its work raised.
    """

    worker: int
    content: bytes | None = None
    gone: str = ""
    error: Exception | None = None


class Crew(Protocol):
    """Workers that each do one piece at a time."""

    def hire(self) -> int:
        """Begin to start a worker and return its number. It reports when it is ready."""

    def give(self, worker: int, piece: Piece) -> None:
        """Let an idle worker do a piece."""

    def wait(self) -> list[Report]:
        """Return what has happened since, waiting for something to happen; for some seconds at most."""

    def dismiss(self) -> None:
        """End all workers."""


def carry_out(crew: Crew, pieces: Sequence[Piece], workers: int, keep: Callable[[Piece, bytes], None]) -> None:
    """Have pieces done by as many workers, each once; pieces of workers that end are done by others.

    Args:
        crew: of no worker yet; it is dismissed in the end.
        pieces: to be done.
        workers: at most so many at a time.
        keep: takes the content of the file of each piece, in whatever order they are ready.

    Raises:
        DataError: workers end again and again. What the work or ``keep`` raises.
    """
    state = _State(crew, deque(pieces))
    try:
        for _ in range(min(workers, len(pieces))):
            state.hire()
        while state.waiting or state.busy:
            for report in crew.wait():
                if report.error is not None:
                    raise report.error
                if report.gone:
                    state.lose(report.worker, report.gone)
                elif report.content is None:
                    state.welcome(report.worker)
                else:
                    keep(state.finish(report.worker), report.content)
            state.hand_out()
    finally:
        crew.dismiss()


class _State:
    def __init__(self, crew: Crew, waiting: deque[Piece]) -> None:
        self._crew, self.waiting = crew, waiting
        self.busy: dict[int, Piece] = {}
        self._idle: list[int] = []
        self._starting: set[int] = set()
        self._losses: Counter[int] = Counter()
        self._stillborn = 0

    def hire(self) -> None:
        self._starting.add(self._crew.hire())

    def welcome(self, worker: int) -> None:
        self._starting.discard(worker)
        self._idle.append(worker)
        self._stillborn = 0

    def finish(self, worker: int) -> Piece:
        self._idle.append(worker)
        return self.busy.pop(worker)

    def lose(self, worker: int, reason: str) -> None:
        """Take back what a worker had, and hire another one. Raises DataError after `LOSSES` for the same reason."""
        piece = self.busy.pop(worker, None)
        self._idle = [other for other in self._idle if other != worker]
        if worker in self._starting:
            self._starting.discard(worker)
            self._stillborn += 1
            if self._stillborn >= LOSSES:
                raise DataError(f"{LOSSES} workers ended before they had begun, the last one because {reason}.")
        if piece is not None:
            self.waiting.appendleft(piece)
            self._losses[piece.number] += 1
            if self._losses[piece.number] >= LOSSES:
                first, last = piece.references[0].name, piece.references[-1].name
                raise DataError(
                    f"{LOSSES} workers ended during shard {piece.number} ({first!r} to {last!r}), the last one because "
                    f"{reason}. Fewer workers or smaller batches take less memory; smaller shards tell the image."
                )
        if self.waiting:
            self.hire()

    def hand_out(self) -> None:
        while self._idle and self.waiting:
            worker, piece = self._idle.pop(), self.waiting.popleft()
            self.busy[worker] = piece
            self._crew.give(worker, piece.located())
