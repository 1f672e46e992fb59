"""Pictures as a folder, a tar file, and tables of paths and of bytes; how shards are read, and a crew that is away."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vision_ssm.inference.jobs.crew import AnyWork, Report
from vision_ssm.inference.jobs.plan import Piece


def write_pictures(folder: Path, count: int, broken: int | None = None) -> list[Path]:
    """Noise around plain colours; the file ``broken`` is no image."""
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    files = [folder / f"{number:05d}.png" for number in range(count)]
    for number, file in enumerate(files):
        pixels = numbers.integers(0, 60, (12, 10, 3)) + 190 * np.eye(3, dtype=np.int64)[number % 3]
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        if number == broken:
            file.write_bytes(b"no image")
    return files


def write_tar(path: Path, files: list[Path]) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in files:
            entry = tarfile.TarInfo(file.name)
            entry.size = file.stat().st_size
            archive.addfile(entry, io.BytesIO(file.read_bytes()))
    return path


def write_table(
    path: Path, column: str, values: list[str] | list[str | None] | list[bytes] | list[dict[str, object]]
) -> Path:
    pq.write_table(pa.table({column: values, "id": list(range(len(values)))}), path, row_group_size=3)
    return path


def rows_of(folder: Path) -> list[dict[str, object]]:
    """All rows of the shards, in order."""
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def crew_in(folder: Path) -> Callable[..., Any]:
    """In the place of `RayCrew`: a worker that was started in another folder, on a machine without a GPU."""

    class Away:
        workers = 1

        def __init__(self, work: AnyWork, *_: object) -> None:
            self._work, self._reports = work, [Report(0)]

        def hire(self) -> int:
            with contextlib.chdir(folder):
                self._bench = self._work.open("cpu")
            return 0

        def give(self, worker: int, piece: Piece) -> None:
            with contextlib.chdir(folder):
                self._reports.append(Report(worker, self._bench.content(piece)))

        def wait(self) -> list[Report]:
            return [self._reports.pop(0)]

        def dismiss(self) -> None:
            pass

    return Away
