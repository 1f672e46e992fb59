"""Two checkouts of this library on the same work, in turn: did a change cost speed?

Each version runs in a process of its own, started once; the two take turns, one measurement each, so that a machine
whose speed drifts treats both alike. The ratio is taken pair by pair.

    python benchmarks/two_versions.py --before ../before --after . --output results/two_versions.json

A checkout is a folder with ``.venv/bin/python`` in which its package is installed with the native kernel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CASES = {
    "vim_tiny 224 float32": ("vim_tiny_patch16_224", 224, "float32", "classify", 1),
    "vim_tiny 224 bfloat16": ("vim_tiny_patch16_224", 224, "bfloat16", "classify", 1),
    "vim_tiny 1248 float32": ("vim_tiny_patch16_224", 1248, "float32", "classify", 1),
    "vim_tiny 1248 bfloat16": ("vim_tiny_patch16_224", 1248, "bfloat16", "classify", 1),
    "vmamba_tiny 224 float32": ("vmamba_tiny_s1l8", 224, "float32", "classify", 1),
    "efficientvmamba_tiny 224 float32": ("efficientvmamba_tiny", 224, "float32", "classify", 1),
    "vim_tiny 8 x 224 training": ("vim_tiny_patch16_224", 224, "float32", "train", 8),
    "vim_tiny 224 features": ("vim_tiny_patch16_224", 224, "float32", "features", 1),
    "vim_tiny 1024 features": ("vim_tiny_patch16_224", 1024, "float32", "features", 1),
    "vim_tiny 1024 float32": ("vim_tiny_patch16_224", 1024, "float32", "classify", 1),
}
SECONDS = 0.6  # of one measurement, at least one call


def work(threads: int) -> None:
    """The process of one version: reads the name of a case, answers with the seconds of one call."""
    import timm
    import torch

    import vision_ssm  # noqa: F401 -- registers the models

    torch.set_num_threads(threads)
    ready: dict[str, Any] = {}

    def prepare(name: str) -> Any:
        model_name, side, dtype, what, batch = CASES[name]
        torch.manual_seed(0)
        model = timm.create_model(model_name, features_only=what == "features").to(getattr(torch, dtype))
        images = torch.randn(batch, 3, side, side, dtype=getattr(torch, dtype))
        if what == "train":
            model.train()

            def step() -> None:
                model.zero_grad(set_to_none=True)
                model(images).square().mean().backward()

            return step
        model.eval()

        def infer() -> None:
            with torch.inference_mode():
                model(images)

        return infer

    for line in sys.stdin:
        name = line.rstrip("\n")
        if name not in ready:
            ready.clear()  # one model at a time
            ready[name] = prepare(name)
            ready[name]()
            ready[name]()
        times: list[float] = []
        while sum(times) < SECONDS:
            before = time.perf_counter()
            ready[name]()
            times.append(time.perf_counter() - before)
        print(statistics.median(times), flush=True)


class Version:
    """A checkout at work."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [folder / ".venv/bin/python", Path(__file__).resolve(), "--work", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip

    @property
    def commit(self) -> str:
        """The commit that is checked out, marked where files have changed."""
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return said.stdout.strip()

    def seconds(self, name: str) -> float:
        """Measure a case once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    from vision_ssm.analysis.machine import environment

    before, after = (Version(folder.resolve(), options.threads) for folder in (options.before, options.after))
    rows = []
    for name in options.cases:
        pairs = [(before.seconds(name), after.seconds(name)) for _ in range(options.rounds)]
        ratios = [new / old for old, new in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row = {
            "case": name,
            "before_ms": round(1e3 * statistics.median(old for old, _ in pairs), 2),
            "after_ms": round(1e3 * statistics.median(new for _, new in pairs), 2),
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
        rows.append(row)
        print(f"{name:36} {row['before_ms']:9.2f} {row['after_ms']:9.2f} ms  {middle:.3f} ({low:.3f} to {high:.3f})")
    if options.output:
        machine = environment()
        report = {
            "command": "python benchmarks/two_versions.py --before A --after B",
            "before": before.commit,
            "after": after.commit,
            "threads": options.threads,
            "rounds": options.rounds,
            "machine": {"processor": machine.processor, "cores": machine.cores, "versions": machine.versions},
            "rows": rows,
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
