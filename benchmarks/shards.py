"""Reading a data set from its folder and from shards of it: images a second, through the loader of training.

    python benchmarks/shards.py images/ --workers 2 --output results/shards.json

The data are packed into a temporary folder first. Each round reads the first ``--images`` of a shuffled epoch from the
one and then from the other, opened anew, with training's transform at 224 pixels and one thread a process; the first
round warms the memory of the system and is left out. Decoded images are not kept: a folder that is small enough keeps
them from its second epoch on, which shards do not. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from results_file import provenance, write

from vision_ssm.data.loader import EpochLoader
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.packing import pack
from vision_ssm.tasks.registry import find_task, task_of

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = task_of(options.data)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        counts = pack(options.data, folder, task)
        packing = time.perf_counter() - start
        speeds: dict[str, list[float]] = {"folder": [], "shards": []}
        for _ in range(options.rounds + 1):
            for name, place in (("folder", options.data), ("shards", folder)):
                speeds[name].append(images_per_second(place, task, options.images, options.workers))
    figures = {name: round(median(found[1:]), 1) for name, found in speeds.items()}
    report = {
        **provenance(" ".join(["python", *sys.argv])),
        "task": task,
        "images": counts,
        "workers": options.workers,
        "packing_seconds": round(packing, 2),
        "images_per_second": figures,
        "rounds": {name: [round(speed, 1) for speed in found[1:]] for name, found in speeds.items()},
    }
    write(options.output, report)
    print(figures)


def images_per_second(place: str, name: str, images: int, workers: int) -> float:
    info = find_task(name)
    task = info.load()(from_mapping(info.load_settings(), {"data": {"path": place}}))
    samples = task.open("train")
    task.prepare(samples)
    transform = task.transform(Preprocessing(), train=True)
    loader = EpochLoader(
        samples, transform, collate=task.collate, batch_size=BATCH, train=True, multiple=BATCH, workers=workers
    )
    batches, seen = iter(loader), 0
    next(batches)  # processes have started, and the first batches are on their way
    start = time.perf_counter()
    for batch in batches:
        seen += len(batch.indices)
        if seen >= images:
            break
    return seen / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
