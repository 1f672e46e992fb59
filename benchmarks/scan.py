"""Speed of the selective scan on the CPU: state updates per second, forward, and backward relative to it.

    python benchmarks/scan.py --output results/scan_cpu.json
    python benchmarks/scan.py --threads 1 2 --backends cpu chunked

One state update is one h[t] = exp(delta A) h[t-1] + delta B u and its share of the readout, for one token, channel,
state and direction. All settings of a row run in turn and the medians of the rounds are kept, so that a machine whose
speed drifts treats them alike. Every result is checked against the float64 reference on a short sequence first.

Forward is the public function: the kernel, about 70 microseconds of Python per call, and memory for the result, which
may come from the system page by page. The cpu backend's kernel is also timed alone, writing to memory it already has.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results_file import provenance, write
from torch import Tensor

from vision_ssm.ops import Traversal, selective_scan
from vision_ssm.ops.scan import cpu
from vision_ssm.ops.scan.contract import ScanCall

CHANNELS, STATES = 384, 16
# name -> batch, tokens, directions, gate and step-size activation as in the models
SETTINGS = {
    "197": (1, 197, 1, False),
    "1025": (1, 1025, 1, False),
    "6085": (1, 6085, 1, False),
    "197, gated": (1, 197, 1, True),
    "1025, gated": (1, 1025, 1, True),
    "6085, gated": (1, 6085, 1, True),
    "16 images of 197, both ways, gated": (16, 197, 2, True),
    "6085, both ways, gated": (1, 6085, 2, True),
    "65536, gated": (1, 65536, 1, True),
}


def inputs(batch: int, tokens: int, directions: int, gated: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Random arguments; step sizes from 0.01 to 1, as in trained networks."""
    torch.manual_seed(0)
    walks = [Traversal.sequence(tokens), Traversal.sequence(tokens, reverse=True)][:directions]

    def normal(last: int) -> Tensor:
        return torch.randn(batch, directions, tokens, last).to(dtype)

    step = normal(CHANNELS) - 3
    return {
        "u": normal(CHANNELS),
        "delta": step if gated else torch.nn.functional.softplus(step),
        "A": -torch.arange(1.0, STATES + 1).expand(directions, CHANNELS, STATES).contiguous(),
        "B": normal(STATES),
        "C": normal(STATES),
        "D": torch.ones(directions, CHANNELS) if gated else None,
        "z": torch.randn(batch, tokens, CHANNELS).to(dtype) if gated else None,
        "delta_bias": torch.zeros(directions, CHANNELS) if gated else None,
        "traversals": walks,
        "delta_softplus": gated,
    }


def check(backend: str) -> None:
    """Refuse to time a backend whose results are wrong."""
    arguments = inputs(1, 130, 2, True, torch.float32)
    wide: dict[str, Any] = {k: v.double() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    exact = selective_scan(**wide, backend="reference")
    error = (selective_scan(**arguments, backend=backend).double() - exact).norm() / exact.norm()
    if error > 1e-6:
        raise SystemExit(f"backend {backend} is off by {error:.1e}: fix it before timing it")


def timed(run: Callable[[], Any], least: float = 0.05) -> float:
    """Seconds per call, over calls that take at least ``least`` seconds together."""
    started = time.perf_counter()
    run()
    calls = max(1, round(least / (time.perf_counter() - started)))
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def bare_kernel(arguments: dict[str, Any]) -> Callable[[], None]:
    """The forward kernel as one call that allocates nothing."""
    call = ScanCall(**(arguments | {"traversals": tuple(arguments["traversals"]), "merge": True}))
    y = call.output()
    total = y if y.dtype == torch.float32 else torch.empty_like(y, dtype=torch.float32)
    kernel = cpu._describe(call)
    for name, x in (("y", y), ("sum", total)):
        kernel.set((call.batch, 1, call.tokens, call.channels), x.dtype, **{name: x})
    return lambda: kernel.run("vssm_scan_forward")


def measure(setting: str, dtype: torch.dtype, backend: str, rounds: int) -> dict[str, float]:
    """Medians of forward, backward and (of the cpu backend) bare kernel seconds."""
    arguments = inputs(*SETTINGS[setting], dtype)

    def forward() -> Tensor:
        return selective_scan(**arguments, backend=backend)

    leaves: dict[str, Any] = {
        k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in arguments.items()
    }
    y = selective_scan(**leaves, backend=backend)
    gradient, wanted = torch.randn_like(y), [v for v in leaves.values() if isinstance(v, Tensor)]

    def backward() -> Any:
        return torch.autograd.grad(y, wanted, gradient, retain_graph=True)

    seconds: dict[str, list[float]] = {"forward": [], "backward": []}
    kernel = bare_kernel(arguments) if backend == "cpu" else None
    if kernel is not None:
        seconds["kernel"] = []
    for _ in range(rounds):
        if kernel is not None:
            seconds["kernel"].append(timed(kernel))
        with torch.no_grad():
            seconds["forward"].append(timed(forward))
        seconds["backward"].append(timed(backward))
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backends", nargs="+", default=["cpu", "chunked"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows = []
    for backend in options.backends:
        check(backend)
    for setting in options.settings:
        batch, tokens, directions, _ = SETTINGS[setting]
        updates = batch * tokens * directions * CHANNELS * STATES
        for threads in options.threads:
            torch.set_num_threads(threads)
            for backend in options.backends:
                for dtype in (torch.float32, torch.bfloat16):
                    seconds = measure(setting, dtype, backend, 3 if backend == "chunked" else options.rounds)
                    row = {
                        "setting": setting,
                        "threads": threads,
                        "backend": backend,
                        "dtype": str(dtype).removeprefix("torch."),
                        "forward_updates_per_second": updates / seconds["forward"],
                        "backward_over_forward": seconds["backward"] / seconds["forward"],
                        "forward_seconds": seconds["forward"],
                    }
                    alone = ""
                    if "kernel" in seconds:
                        row["kernel_updates_per_second"] = updates / seconds["kernel"]
                        alone = f"   kernel alone {updates / seconds['kernel'] / 1e9:6.2f} G/s"
                    rows.append(row)
                    print(
                        f"{setting:36} {threads} threads  {backend:8} {row['dtype']:9} "
                        f"forward {row['forward_updates_per_second'] / 1e9:6.2f} G/s   "
                        f"backward {row['backward_over_forward']:5.2f} x forward{alone}",
                        flush=True,
                    )
    if options.output:
        write(
            options.output,
            provenance("python benchmarks/scan.py") | {"channels": CHANNELS, "states": STATES, "rows": rows},
        )


if __name__ == "__main__":
    main()
