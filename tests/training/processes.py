"""Real processes over gloo that train: what tests of several processes share."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import queue
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vision_ssm.errors import DataError, VisionSSMError
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.state import read_state

LONGEST = 120.0
"""Seconds that a job may take."""

PRELOADED = [
    "vision_ssm.training.run",
    "vision_ssm.models.vim",
    "vision_ssm.tasks.classification.task",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
]


class Job(NamedTuple):
    """A run of all processes, or a part of it.

    ``kind``: "train"; "stop" as by a signal after so many updates (``at``); "signal" to rank 1 in its first
    evaluation; "save" only reads the state and writes it again; "read-only on rank 1"; "a disk each"; "other code on
    rank 1"; "first boxes" in the place of drawn ones. ``killed``: that rank (-1: all) dies by SIGKILL at the moment
    ("step", update), ("disk", files and names of checkpoints that it brought to disk before), or ("time", milliseconds
    after its first update began); or it sleeps instead of opening the data ("asleep", 0), what it says goes into the
    file ``stderr``. ``of_rank``: settings of one rank.
    """

    config: TrainConfig
    kind: str = "train"
    at: int = 0
    killed: tuple[int, str, int] | None = None
    of_rank: dict[int, dict[str, Any]] | None = None


def _deadly(job: Job, rank: int) -> Callable[[str, int], None]:
    """What is told every moment, and at the one of the job kills this process, or all of them, itself last."""
    import torch.distributed as dist

    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, os.getpid())

    def at(moment: str, count: int) -> None:
        if job.killed is None or job.killed[1:] != (moment, count) or rank != max(job.killed[0], 0):
            return
        for process in [*everyone[1:], everyone[0]] if job.killed[0] < 0 else [os.getpid()]:
            os.kill(process, signal.SIGKILL)

    return at


def first(indices: torch.Tensor, most: int) -> torch.Tensor:
    """Take the first ones where detectors draw."""
    return indices[:most]


def _refuse(folder: Path) -> None:
    raise DataError("cannot write to output folder, it is read-only")


def _prepare(job: Job, rank: int, folder: Path) -> None:
    """Put in place what a job wants to happen inside of `train`; each job is a new process's, so nothing is undone."""
    from vision_ssm.layers.detection import matching
    from vision_ssm.training import agreement, opening, run
    from vision_ssm.training.engine import Engine

    update, save, write, deadly = Engine.update, run._Run._save, run.checkpoint.write_state, _deadly(job, rank)
    updates, written, writing = 0, 0, False

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal updates
        at = self.progress.update + 1
        deadly("step", at)
        if job.killed is not None and job.killed[1] == "time" and updates == 0:
            threading.Timer(job.killed[2] / 1000, deadly, job.killed[1:]).start()
        updates += 1
        stop = job.kind == "stop" and at == job.at
        return update(self, *args, **{**options, "stop": stop or options["stop"]})

    def writes(*args: Any) -> Any:
        nonlocal writing
        writing = True
        path = write(*args)
        writing = False
        return path

    def on_disk(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            nonlocal written
            if writing:
                deadly("disk", written)
                written += 1
            return call(*args)

        return counting

    Engine.update, run.checkpoint.write_state = counted, writes
    os.fsync, os.replace = on_disk(os.fsync), on_disk(os.replace)
    if job.kind != "signal":
        run._Run._interrupted = lambda self: (self._save(), self._result("SIGTERM"))[1]
    if job.kind == "signal" and rank == 1:
        run.EvaluationStep = lambda *position: signal.raise_signal(signal.SIGTERM)
    if job.killed == (rank, "asleep", 0):
        os.dup2(os.open(folder / "stderr", os.O_CREAT | os.O_WRONLY), 2)
        opening._part = lambda *args: time.sleep(LONGEST)
    if job.kind == "a disk each":
        (folder / f"disk{rank}").mkdir()
        os.chdir(folder / f"disk{rank}")
    if job.kind == "read-only on rank 1" and rank == 1:
        agreement.require_writable = _refuse
    if job.kind == "first boxes":
        matching._drawn = first
    if job.kind == "other code on rank 1" and rank == 1:
        agreement._code_digest = lambda: "of another version"
    if job.kind == "save":
        run._Run._to_the_end = lambda self: (save(self), self._result(None))[1]


def _child(rank: int, world: int, meeting: str, job: Job, output: Any) -> None:
    import torch.distributed as dist

    from vision_ssm.training import run

    faulthandler.dump_traceback_later(LONGEST, exit=True)  # a test that hangs says where
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message="Grad strides")  # would be told by every process, and is nothing
    run.results.write_pictures = lambda *_: None
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    _prepare(job, rank, Path(meeting).parent)
    events: list[Any] = []
    error = None
    try:
        run.train(job.config.replace(**(job.of_rank or {}).get(rank, {})), on_event=events.append)
    except (VisionSSMError, RuntimeError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    output.put((rank, error, len(events)))
    if error is None:
        dist.destroy_process_group()


def run(job: Job, world: int, folder: Path, seconds: float = LONGEST) -> dict[int, tuple[str | None, int]]:
    """Carry out a job on so many processes; returns (error, events) of each rank that was not killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    output = context.Queue()
    number = len(list(folder.glob("meeting*")))
    meeting = folder / f"meeting{number}"
    children = [context.Process(target=_child, args=(rank, world, str(meeting), job, output)) for rank in range(world)]
    for child in children:
        child.start()
    found: dict[int, tuple[str | None, int]] = {}
    try:
        for _ in range(0 if job.killed and job.killed[0] < 0 else world - (job.killed is not None)):
            rank, error, events = output.get(timeout=seconds)
            found[rank] = error, events
    except queue.Empty:
        for child in children:
            child.kill()
        raise
    for child in children:
        child.join(timeout=30)
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a state by their places."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: item for part, inner in items for key, item in flat(inner, f"{name}.{part}").items()}
    return {name: value}


def saved(folder: Path) -> dict[str, Any]:
    """The leaves of the state of a run, whole, without what tells of the process only."""
    leaves = flat(read_state(folder).filled())
    told = (".config.run", ".log_bytes", ".format")
    return {name: x for name, x in leaves.items() if not name.startswith(told) and not name.endswith("seconds")}
