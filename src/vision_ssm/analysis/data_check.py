"""Looking through a data set before anything is trained on it: every file is decoded once, as training would."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision_ssm.data.batches import Samples
from vision_ssm.errors import ConfigError, VisionSSMError
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.registry import DEFAULT, find_task
from vision_ssm.tasks.task import Task

__all__ = ["DataReport", "SplitReport", "check_data"]

FEW = 5
"""A class of fewer training images is said."""


@dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
        split: ``train``, ``val``, ``test``, or ``all`` of data without parts.
        images: that could be read.
        unreadable: (file, reason) of the others.
        classes: in so many images each class occurs.
        amounts: how much of each class there is, in the task's unit (`Task.counted`).
        sizes: (width, height) of the smallest, the middle and the largest image, by pixels.
        duplicates: groups of files that show the same.
        faults: (file, what is wrong) of the annotations.
        asides: (file, what is unusual and does no harm) of them.
    """

    split: str
    images: int
    unreadable: tuple[tuple[str, str], ...]
    classes: dict[str, int]
    amounts: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    duplicates: tuple[tuple[str, ...], ...]
    faults: tuple[tuple[str, str], ...] = ()
    asides: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found.

    Attributes:
        data: as it was named.
        task: that it was opened for.
        counted: unit of the amounts.
        splits: what each holds.
        shared: (split, file, other split, file) of images that are in two splits.
        problems: all of it that somebody should look at, in sentences; empty where nothing was found.
    """

    data: str
    task: str
    counted: str
    splits: tuple[SplitReport, ...]
    shared: tuple[tuple[str, str, str, str], ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return asdict(self)


class _Seen(NamedTuple):
    """One sample: its file, and what is wrong with it or what it holds."""

    path: str
    fault: str | None
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""
    amounts: Mapping[str, int] = {}


def check_data(
    data: str | Path,
    task: str = DEFAULT,
    *,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Decode every image of a data set with its target, and say what training would stumble over.

    Args:
        data: a folder, or a name that the task knows.
        task: that the data are for.
        workers: threads that decode.
        on_progress: called with (images done, images in all) of a split.

    Raises:
        DataError: the data cannot be opened at all.
        ConfigError: unknown task, or ``workers`` below 1.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}.")
    info = find_task(task)
    opened = info.load()(from_mapping(info.load_settings(), {"data": {"path": str(data)}}))
    reports, digests = [], {}
    for split, samples in _splits(opened):
        seen = list(_looked_at(opened, samples, workers, on_progress))
        digests[split] = {one.digest: one.path for one in reversed(seen) if one.fault is None}
        report = _report(split, seen, list(getattr(samples, "class_names", ())))
        faults, asides = tuple(opened.faults(samples)), tuple(opened.asides(samples))
        reports.append(replace(report, faults=faults, asides=asides))
    shared = tuple(_shared(digests))
    return DataReport(str(data), task, opened.counted, tuple(reports), shared, tuple(_problems(reports, shared)))


def _splits(task: Task) -> Iterator[tuple[str, Samples]]:
    """The parts that the data have themselves, each once: some stand for others."""
    own = task.own_splits()
    if "train" not in own:
        yield "all", task.open_unseen("all")
        return
    known: set[tuple[str, ...]] = set()
    for split in own:
        samples = task.open_unseen(split)
        if samples.paths not in known:
            known.add(samples.paths)
            yield split, samples


def _looked_at(
    task: Task, samples: Samples, workers: int, on_progress: Callable[[int, int], None] | None
) -> Iterator[_Seen]:
    def look(position: int) -> _Seen:
        path = samples.paths[position]
        try:
            image, target = samples[position]
            digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
            digest.update(np.ascontiguousarray(image).data if image.width * image.height else b"")
            return _Seen(path, None, image.size, digest.digest(), task.tally(samples, target))
        except (VisionSSMError, MemoryError, RuntimeError) as error:
            return _Seen(path, str(error) or type(error).__name__)

    with ThreadPoolExecutor(workers) as pool:
        positions = iter(range(len(samples)))
        while chunk := list(islice(positions, 16 * workers)):  # not all at once: an interruption need not wait long
            yield from pool.map(look, chunk)
            if on_progress is not None:
                on_progress(chunk[-1] + 1, len(samples))


def _report(split: str, seen: Sequence[_Seen], names: Sequence[str]) -> SplitReport:
    whole = [one for one in seen if one.fault is None]
    classes: Counter[str] = Counter(dict.fromkeys(names, 0))
    amounts: Counter[str] = Counter(dict.fromkeys(names, 0))
    same = defaultdict(list)
    for one in whole:
        classes.update(name for name, amount in one.amounts.items() if amount)
        amounts.update(one.amounts)
        same[one.digest].append(one.path)
    by_pixels = sorted((one.size for one in whole), key=lambda size: size[0] * size[1])
    return SplitReport(
        split,
        len(whole),
        tuple((one.path, one.fault) for one in seen if one.fault is not None),
        dict(classes),
        dict(amounts),
        (by_pixels[0], by_pixels[len(by_pixels) // 2], by_pixels[-1]) if by_pixels else (),
        tuple(tuple(paths) for paths in same.values() if len(paths) > 1),
    )


def _shared(digests: Mapping[str, Mapping[bytes, str]]) -> Iterator[tuple[str, str, str, str]]:
    names = list(digests)
    for at, split in enumerate(names):
        for other in names[at + 1 :]:
            for digest in digests[split].keys() & digests[other].keys():
                yield split, digests[split][digest], other, digests[other][digest]


def _problems(reports: Sequence[SplitReport], shared: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    for report in reports:
        if report.unreadable:
            yield f"{report.split}: {len(report.unreadable)} of {_count(report)} images cannot be used."
        if report.faults:
            many = "fault" if len(report.faults) == 1 else "faults"
            yield f"{report.split}: {len(report.faults):,} {many} in the annotations."
        if not report.images:
            yield f"{report.split}: not one image can be used."
        if report.duplicates:
            yield f"{report.split}: {sum(map(len, report.duplicates))} files show what another one shows."
        never = [name for name, images in report.classes.items() if not images]
        if never and report.images:
            yield f"{report.split}: {_listed(never)} {'is' if len(never) == 1 else 'are'} not seen in any image."
        few = [name for name, images in report.classes.items() if 0 < images < FEW]
        if few and report.split in ("train", "all"):
            yield f"{report.split}: {_listed(few)} in fewer than {FEW} images."
    for pair, count in Counter((split, other) for split, _, other, _ in shared).items():
        yield f"{count} images are in {pair[0]} and in {pair[1]}: scores there tell too much."


def _count(report: SplitReport) -> int:
    return report.images + len(report.unreadable)


def _listed(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(map(repr, names[:shown])) + (f" and {len(names) - shown} more" if len(names) > shown else "")
