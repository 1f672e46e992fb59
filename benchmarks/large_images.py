r"""One image of growing size through a model in one pass, from the file to the answer: time and memory against tokens.

    python benchmarks/large_images.py --threads 2 --output results/large_images.json
    python benchmarks/large_images.py --task segmentation --threads 2 --output results/large_scenes.json \
        --model vim_tiny_patch16_224 deit_tiny_patch16_224:2048

With several models, each size is measured for one after the other; ``NAME:SIDE`` leaves out what is larger. A segmentor
is the model with UPerNet's head, 192 channels wide as in Vim-Ti's published configuration, and 150 classes.

Every size runs in a process of its own, which reads the whole of an uncompressed image from the disk in strips
(`vision_ssm.predict(..., img_size="native")`); its pixels and the weights are random. Seconds are those of the call,
from opened weights to classes: the second call of the process below 8192 pixels, the first from there on. Memory is the
process's highest resident memory, weights and libraries included. `slope` is, per model, the least-squares slope of
log(seconds) against log(tokens): 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_file import provenance, write

import vision_ssm
from vision_ssm.models.registry import is_ours
from vision_ssm.tasks.registry import find_task
from vision_ssm.weights.files import WeightsInfo, load_weights, save_weights

SIDES = (512, 1024, 2048, 4096, 8192, 16384)
CLASSES = {"classification": 10, "segmentation": 150}
SETTINGS: dict[str, dict[str, Any]] = {"classification": {}, "segmentation": {"head": {"channels": 192}}}
LARGE = 8192  # from this side on, one call and one run are enough
STRIP = 256


def write_image(path: Path, side: int) -> None:
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(side, side, 3))
    generator = np.random.default_rng(side)
    for row in range(0, side, STRIP):
        pixels[row : row + STRIP] = generator.integers(0, 256, pixels[row : row + STRIP].shape, dtype=np.uint8)
    pixels.flush()


def write_weights(path: Path, name: str, task_name: str) -> None:
    torch.manual_seed(0)
    info = find_task(task_name)
    settings = info.load_settings().model_validate(SETTINGS[task_name])
    classes = CLASSES[task_name]
    record = {"class_names": [f"class {i}" for i in range(classes)], "palette": [[i, i, i] for i in range(classes)]}
    task = info.load().restore(record, settings)
    options = {} if is_ours(name) else {"dynamic_img_size": True}
    model = task.build(name, **options)
    save_weights(path, model, info=WeightsInfo(name, options, task_name, task.record(), task.preprocessing(model)))


def run_one(weights: str, image: str, threads: int) -> dict[str, float]:
    """What the process of one size does."""
    torch.set_num_threads(threads)
    model, seconds = load_weights(weights), 0.0
    for _ in range(2 if Path(image).stat().st_size < 3 * LARGE**2 else 1):
        before = time.perf_counter()
        found = vision_ssm.predict(model, image, img_size="native", device="cpu")
        seconds = time.perf_counter() - before
        if found.failures:
            raise SystemExit(f"{image}: {found.failures[0].reason}")
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = []
    models = {name: int(most or max(arguments.sides)) for name, _, most in (m.partition(":") for m in arguments.model)}
    for name in models:
        write_weights(folder / f"{name}.safetensors", name, arguments.task)
    for side in arguments.sides:
        image = folder / f"{side}.npy"
        write_image(image, side)
        for name in (name for name, most in models.items() if side <= most):
            weights = folder / f"{name}.safetensors"
            command = [sys.executable, __file__, "--one", str(weights), str(image), "--threads", str(arguments.threads)]
            repeats = arguments.repeats if side < LARGE else 1
            runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(repeats)]
            run = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
            rows.append({"model": name, "side": side, "tokens": (side // 16) ** 2 + 1, "runs": len(runs), **run})
            spent = f"{run['seconds']:8.2f} s {run['peak_bytes'] / 2**30:6.2f} GiB"
            print(f"{name} {side:>6} px {rows[-1]['tokens']:>9,} tokens {spent}", flush=True)
        image.unlink()
    return rows


def slopes(rows: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for name in {row["model"] for row in rows}:
        x, y = ([math.log(row[value]) for row in rows if row["model"] == name] for value in ("tokens", "seconds"))
        if len(x) > 1:
            found[name] = float(np.polyfit(x, y, 1)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vim_tiny_patch16_224"], metavar="NAME[:SIDE]")
    parser.add_argument("--task", default="classification", choices=list(CLASSES))
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--repeats", type=int, default=3, help="runs below 8192 pixels, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(arguments.one[0], arguments.one[1], arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    result = {
        **provenance(" ".join(["python", "benchmarks/large_images.py", *sys.argv[1:]])),
        "threads": arguments.threads,
        "task": arguments.task,
        "rows": rows,
        "slope": slopes(rows),
    }
    print(f"slope {result['slope']}")
    if arguments.output:
        write(arguments.output, result)


if __name__ == "__main__":
    main()
