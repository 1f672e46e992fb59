"""Ctrl-C and SIGTERM as a request that the training loop answers between two updates."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["StopRequest"]


class StopRequest:
    """Inside ``with StopRequest() as stop``, the first SIGINT or SIGTERM is only noted in ``stop.signal``.

    A second one acts as it would have without this class, so a hanging run can still be ended. Outside the main thread,
    where Python delivers no signals, nothing is installed.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number).name
            return
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be set again from here.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()
