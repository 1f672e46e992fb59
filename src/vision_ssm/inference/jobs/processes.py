"""Workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FunctionType

from vision_ssm.errors import VisionSSMError
from vision_ssm.inference.jobs.crew import AnyWork, Report
from vision_ssm.inference.jobs.plan import Piece

__all__ = ["ProcessCrew", "processors"]

_PATIENCE = 30.0  # seconds


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessCrew:
    """A process for each worker, which shares the processors with the others; with GPUs they take them in turn.

    Args:
        work: what is done.
        workers: how many there will be at a time.
        device: of all; None for what there is.
    """

    def __init__(self, work: AnyWork, workers: int, device: str | None = None) -> None:
        self._work, self._device = work, device
        self._threads = max(1, processors() // workers)
        # Not forked: this process has threads, and may have used a GPU.
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, tuple[BaseProcess, Connection, int]] = {}
        self._hired, self._free = 0, list(range(workers))

    def hire(self) -> int:
        """Start a process, in the place of one that ended if one did."""
        number, self._hired = self._hired, self._hired + 1
        place = self._free.pop(0)
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._work, self._device_of(place), self._threads)
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that its end is seen here
        self._workers[number] = process, ours, place
        return number

    def give(self, worker: int, piece: Piece) -> None:
        """Send it the piece; if it has just ended, `wait` tells."""
        with contextlib.suppress(OSError):
            self._workers[worker][1].send(piece)

    def wait(self) -> list[Report]:
        """Receive what the processes send."""
        numbers = {connection: number for number, (_, connection, _) in self._workers.items()}
        return [self._heard(numbers[ready]) for ready in wait(list(numbers), _PATIENCE)]  # type: ignore[index]

    def dismiss(self) -> None:
        """End them, in the middle of their work if need be."""
        for process, connection, _ in self._workers.values():
            connection.close()
            process.terminate()
        for process, _, _ in self._workers.values():
            process.join()
        self._workers.clear()

    def _heard(self, number: int) -> Report:
        process, connection, place = self._workers[number]
        try:
            said: bytes | Exception | None = connection.recv()
        except (EOFError, OSError):
            process.join()
            connection.close()
            del self._workers[number]
            self._free.append(place)
            code = process.exitcode or 0
            return Report(number, gone=f"it was ended by signal {-code}" if code < 0 else f"it left with code {code}")
        return Report(number, error=said) if isinstance(said, Exception) else Report(number, said)

    def _device_of(self, place: int) -> str | None:
        if self._device is not None:
            return self._device
        import torch

        gpus = torch.cuda.device_count()
        return f"cuda:{place % gpus}" if gpus else None


def _serve(connection: Connection, work: AnyWork, device: str | None, threads: int) -> None:
    """Open the model, then turn pieces into files until nobody asks any more."""
    # Ctrl-C reaches the whole group; the process that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    try:
        bench = work.open(device)
        connection.send(None)
        while True:
            connection.send(bench.content(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # whoever asked is no more
        return
    except VisionSSMError as error:
        # Those that are made of more than a message do not survive the way as what they are.
        kind = VisionSSMError if isinstance(type(error).__init__, FunctionType) else type(error)
        connection.send(kind(str(error)))
    except Exception as error:  # noqa: BLE001 - a fault of ours: it has to be seen, with its place
        connection.send(RuntimeError(f"{error!r} in a worker:\n{traceback.format_exc()}"))
