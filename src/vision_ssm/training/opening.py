"""The data of a run: opened, cut into folds, looked through before the first update, unreadable files left out."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from vision_ssm.data.batches import Samples
from vision_ssm.errors import ConfigError, DataError, notify
from vision_ssm.storage import whole_file
from vision_ssm.tasks.folds import Fold, open_fold
from vision_ssm.tasks.registry import looks_like
from vision_ssm.tasks.task import Task
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes

__all__ = ["SKIPPED", "WAYS_OUT", "Opened", "open_data", "write_skipped"]

SKIPPED = "skipped.json"
"""In the run's folder: the files that were left out, and why."""

WAYS_OUT = (
    "Repair or remove what cannot be read (vision-ssm data check names all of it), or train without it: "
    "--skip-unreadable (data.skip_unreadable)."
)

QUICK_SAMPLES, QUICK_SECONDS = 64, 3.0
"""So many samples of each part, evenly spread, are read before training; fewer where that takes longer."""

Faults = dict[str, str]
"""Why a file cannot be read, by its path."""


class Opened(NamedTuple):
    """The data of a run.

    Attributes:
        train: samples to train on.
        val: held-out samples.
        identity: fingerprint of what these were cut from, by which an evaluation knows the data of training again.
        skipped: what was left out of ``train`` and of ``val``; None unless data.skip_unreadable.
        notices: sentences for people.
    """

    train: Samples
    val: Samples
    identity: str
    skipped: dict[str, Faults] | None
    notices: list[str]


def open_data(config: TrainConfig, task: Task, processes: Processes, *, resuming: bool, look: bool = True) -> Opened:
    """Open the data of a run, show the training samples to the task, and look for what would end the run later.

    Without data.skip_unreadable that is a quick look: empty files, and a few samples that are read. With it every
    sample is read once, by all processes together; a run that is resumed leaves out what it left out before. Without
    ``look`` nothing is read.

    Raises:
        DataError: the data cannot be opened, or something in them cannot be read.
        ConfigError: data.folds does not fit them.
    """
    processes.at("opening the data")
    if not (look and config.data.skip_unreadable):
        train, whole = _train_part(config, task)
        task.prepare(train)
        val, _ = _part(config, task, "val")
        if look:
            _quick_look((train, val))
        return Opened(train, val, whole.fingerprint, None, task.remarks(train, val))
    known = _known(config.run_folder / SKIPPED, processes) if resuming else {}
    listed, whole = _train_part(config, task)
    train, not_trained = _readable(task, listed, known.get("train"), processes)
    task.prepare(train)
    held, _ = _part(config, task, "val")
    val, not_held = _readable(task, held, known.get("val"), processes)
    skipped = {"train": not_trained, "val": not_held}
    return Opened(train, val, whole.fingerprint, skipped, [*_told(skipped), *task.remarks(train, val)])


def write_skipped(folder: Path, skipped: Mapping[str, Faults]) -> None:
    """Write the list of what was left out into a run's folder. Raises DataError when that fails."""
    with whole_file(folder / SKIPPED) as part:
        part.write_text(json.dumps(skipped, indent=1) + "\n", encoding="utf-8")


def _train_part(config: TrainConfig, task: Task) -> Fold:
    try:
        return _part(config, task, "train")
    except DataError as error:
        alike = looks_like(config.data.path, task.name)
        if not alike:
            raise
        raise DataError(f"{error} {alike}") from error


def _part(config: TrainConfig, task: Task, split: Literal["train", "val"]) -> Fold:
    """The samples of a part, and what they were cut from where there are folds; else themselves."""
    data = config.data
    if data.folds is not None:
        if data.fold is None:
            raise ConfigError(
                "data.folds makes a run of each fold: say which (data.fold), or call "
                "vision_ssm.training.train_folds, which makes all of them."
            )
        return open_fold(task, split, data.fold, data.folds)
    samples = task.adopt(task.open_unseen(split)) if data.skip_unreadable else task.open(split)
    return Fold(samples, samples)


# ---------------------------------------------------------------------------------------------------- the quick look
def _quick_look(parts: Iterable[Samples]) -> None:
    faults: Faults = {}
    for samples in parts:
        faults |= dict(_empty_files(samples.paths))
        faults |= dict(_read(samples, _spread(len(samples)), seconds=QUICK_SECONDS))
    if faults:
        listed = list(faults.values())
        more = f" The same goes for {len(listed) - 3} more." if len(listed) > 3 else ""
        raise DataError(f"{' '.join(listed[:3])}{more} {WAYS_OUT}")


def _spread(count: int) -> Sequence[int]:
    return range(0, count, -(-count // QUICK_SAMPLES) or 1)


def _empty_files(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # samples of built-in data sets are no files
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            yield path, f"cannot read image {path!r}: the file is empty (0 bytes)."


def _read(
    samples: Samples,
    positions: Sequence[int],
    seconds: float | None = None,
    at: Callable[[str], None] = lambda place: None,
) -> Iterator[tuple[str, str]]:
    """Read samples, by two threads; yield the path of each that cannot be, and why."""

    def fault(position: int) -> str | None:
        try:
            samples[position]
        except DataError as error:
            return str(error)
        return None

    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        waiting = iter(positions)
        while chunk := list(islice(waiting, 16)):  # not all at once: an interruption need not wait long
            at(f"reading every image once, {chunk[0]:,} of {len(samples):,}")
            for position, reason in zip(chunk, pool.map(fault, chunk), strict=True):
                if reason is not None:
                    yield samples.paths[position], reason
            if seconds is not None and time.monotonic() - began > seconds:
                break


# ------------------------------------------------------------------------------------------------- what is left out
def _readable(task: Task, samples: Samples, known: Faults | None, processes: Processes) -> tuple[Samples, Faults]:
    """The samples without those that cannot be read, and the latter. Every process gets the same."""
    if known is None or not known.keys() <= set(samples.paths):
        if processes.is_main and len(samples) > 1000:
            notify(f"reading all {len(samples):,} images once, to leave out those that cannot be (skip_unreadable)")
        mine = dict(_read(samples, range(processes.rank, len(samples), processes.world), at=processes.at))
        known = {path: reason for faults in processes.gather(mine) for path, reason in faults.items()}
    keep = [position for position, path in enumerate(samples.paths) if path not in known]
    if not keep:
        raise DataError(f"not one of {len(samples):,} images can be read; the first: {next(iter(known.values()))}")
    faults = {path: known[path] for path in samples.paths if path in known}
    return (task.subset(samples, keep) if faults else samples), faults


def _known(file: Path, processes: Processes) -> dict[str, Faults]:
    """What the run left out before it was interrupted; empty where that is not known."""
    found: dict[str, Faults] = {}
    if processes.is_main:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # killed before it was written: the files are read again
            found = {}
    return dict(processes.gather(found)[0])


def _told(skipped: Mapping[str, Faults]) -> list[str]:
    train, val = skipped["train"], skipped["val"]
    if not train and not val:
        return []
    reasons = [*train.values(), *val.values()]
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return [
        f"Left out, as they cannot be read: {len(train)} of the images to train on, {len(val)} of those held out "
        f"({SKIPPED} in the run's folder lists them): {' '.join(reasons[:5])}{more}"
    ]
