"""Vim's own comparisons on CIFAR-10 at equal budget: scan direction, and where the class token stands.

    python benchmarks/cifar10_ablation.py path/to/cifar10 --output results/cifar10_ablation.json

Every run has the same small network (embed_dim 64, depth 4), images, updates and recipe; only the named option
differs. Run in order of seeds, so that an interrupted benchmark still compares like with like; finished runs in the
output file are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from results_file import provenance, write

# The first two compare directions as the paper's table 4 does, without a class token; the others as its table 5.
VARIANTS: dict[str, dict[str, Any]] = {
    "forward only, mean": {"class_token": "none", "global_pool": "avg", "direction": "forward"},
    "bidirectional, mean": {"class_token": "none", "global_pool": "avg"},
    "bidirectional, head token": {"class_token": "head"},
    "bidirectional, middle token": {"class_token": "middle"},
}
NETWORK = {"embed_dim": 64, "depth": 4}


def run(data: str, variant: str, seed: int, epochs: int, threads: int) -> dict[str, Any]:
    """Train one variant and return its scores after every epoch."""
    import torch

    from vision_ssm.training import TrainConfig, train

    torch.set_num_threads(threads)
    scores: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "data.path": data,
            "data.workers": 0,
            "data.batch_size": 64,
            "model.options": {**NETWORK, **VARIANTS[variant]},
            "schedule.epochs": epochs,
            "run.output": folder,
            "run.seed": seed,
            "run.device": "cpu",
        }

        def listen(event: Any) -> None:
            record = event.to_dict()
            if record["event"] == "epoch_done":
                scores.append(record["scores"]["top1"])

        started = time.perf_counter()
        train(TrainConfig.load("cifar10_nano", overrides), on_event=listen)
    return {"variant": variant, "seed": seed, "top1": scores, "minutes": round((time.perf_counter() - started) / 60, 2)}


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and spread over the seeds, as Markdown."""
    lines = ["| variant | seeds | top-1, last epoch: mean (min to max) |", "|---|---|---|"]
    for variant in VARIANTS:
        last = [100 * r["top1"][-1] for r in runs if r["variant"] == variant]
        if last:
            lines.append(
                f"| {variant} | {len(last)} | {statistics.mean(last):.2f} ({min(last):.2f} to {max(last):.2f}) |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the results after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, default=Path("results/cifar10_ablation.json"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    options = parser.parse_args()

    report: dict[str, Any] = {"runs": []}
    if options.output.exists():
        report = json.loads(options.output.read_text())
    report |= provenance(" ".join(["python", "benchmarks/cifar10_ablation.py", *sys.argv[1:]])) | {
        "epochs": options.epochs,
        "network": NETWORK,
        "recipe": "cifar10_nano",
    }
    done = {(r["variant"], r["seed"]) for r in report["runs"]}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        pending: list[Future[dict[str, Any]]] = [
            pool.submit(run, options.data, variant, seed, options.epochs, options.threads)
            for seed in range(options.seeds)
            for variant in VARIANTS
            if (variant, seed) not in done
        ]
        for future in as_completed(pending):
            report["runs"].append(future.result())
            report["runs"].sort(key=lambda r: (list(VARIANTS).index(r["variant"]), r["seed"]))
            write(options.output, report)
            print(future.result(), flush=True)
    print(table(report["runs"]))


if __name__ == "__main__":
    main()
