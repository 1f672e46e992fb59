"""Features of a folder of images as a job: images a second by plain worker processes and by actors of a local Ray.

    python benchmarks/jobs.py images/ --model vim_nano --workers 2 --output results/jobs.json

The model's weights are random. Seconds are those of the whole call, from nothing running to all shards written, so that
the start of workers and cluster counts; `steady` leaves out what comes before the first shard. Each engine runs once
before it is measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
from results_file import provenance, write

import vision_ssm
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.inference.jobs.job import ENGINES
from vision_ssm.weights.files import WeightsInfo, save_weights

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="vim_nano")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=128)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        model: Any = vision_ssm.create_model(options.model, num_classes=CLASSES)
        record = {"class_names": [str(number) for number in range(CLASSES)]}
        size = model.pretrained_cfg["input_size"]
        info = WeightsInfo(options.model, {}, "classification", record, Preprocessing(input_size=tuple(size)))
        save_weights(weights, model.eval(), info=info)
        figures = {}
        for turn in range(2):
            for engine in ENGINES:
                out = Path(folder) / f"{engine}{turn}"
                figures[engine] = measured(options, weights, out, engine)
    report = {
        **provenance(" ".join(["python", *sys.argv])),
        "model": options.model,
        "workers": options.workers,
        "shard_rows": options.shard_rows,
        "figures": figures,
    }
    write(options.output, report)
    print(figures)


def measured(
    options: argparse.Namespace, weights: Path, out: Path, engine: Literal["processes", "ray"]
) -> dict[str, float]:
    told: list[tuple[float, int]] = []
    start = time.perf_counter()
    job = vision_ssm.run_job(
        "features",
        weights,
        options.data,
        out,
        engine=engine,
        workers=options.workers,
        shard_rows=options.shard_rows,
        device="cpu",
        on_progress=lambda done, _: told.append((time.perf_counter(), done)),
    )
    seconds = time.perf_counter() - start
    (first, before), (last, done) = told[1], told[-1]
    steady = (done - before) / (last - first) if last > first else float("nan")
    return {"images": job.images, "seconds": round(seconds, 2), "steady_images_per_second": round(steady, 1)}


if __name__ == "__main__":
    main()
