"""Real processes over gloo that train: what tests of several processes share."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import queue
import signal
import warnings
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

    ``kind``: "train"; "stop" as by a signal after so many updates (``at``); "save" only reads the state and writes it
    again; "read-only on rank 1"; "other code on rank 1"; "first boxes" in the place of drawn ones. ``killed``: that
    rank (-1: all) dies by SIGKILL at the moment ("step", update) or ("save", checkpoints before). ``of_rank``: settings
    of one rank.
    """

    config: TrainConfig
    kind: str = "train"
    at: int = 0
    killed: tuple[int, str, int] | None = None
    of_rank: dict[int, dict[str, Any]] | None = None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def first(indices: torch.Tensor, most: int) -> torch.Tensor:
    """Take the first ones where detectors draw."""
    return indices[:most]


def _refuse(folder: Path) -> None:
    raise DataError("cannot write to output folder, it is read-only")


def _prepare(job: Job, rank: int) -> None:
    """Put in place what a job wants to happen inside of `train`; each job is a new process's, so nothing is undone."""
    import torch.distributed.checkpoint as dcp

    from vision_ssm.layers.detection import matching
    from vision_ssm.training import agreement, run
    from vision_ssm.training.engine import Engine

    update, write, save = Engine.update, dcp.save, run._Run._save

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        at = self.progress.update + 1
        if job.killed in ((rank, "step", at), (-1, "step", at)):
            _die()
        stop = job.kind == "stop" and at == job.at
        return update(self, *args, **{**options, "stop": stop or options["stop"]})

    writings = 0

    def written(*args: Any, **options: Any) -> Any:
        nonlocal writings
        done = write(*args, **options)
        if job.killed in ((rank, "save", writings), (-1, "save", writings)):
            _die()
        writings += 1
        return done

    Engine.update, dcp.save = counted, written
    run._Run._interrupted = lambda self: (self._save(), self._result("SIGTERM"))[1]
    if job.kind == "read-only on rank 1" and rank == 1:
        run.require_writable = _refuse
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
    _prepare(job, rank)
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
