"""Speed and memory on a GPU: the operators against their floors and against others, and models beside their peers.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only scan
    python benchmarks/gpu.py --only steps
    python benchmarks/gpu.py --only models --modes inference --sizes 224 1248 --batch 8

Writes results/gpu_scan.json and .png, results/gpu_steps.json and .png, and for every comparison of models and mode
results/gpu_NAME_MODE.json with a plot of speed and one of memory. Needs a CUDA device.

The floor of the scan is the larger of its bytes (see gpu_timing.py: u, delta, B, C and the gate in, y out; all inputs
are saved) and its exponentials, at the rate of a kernel that computes nothing else: one for each token, channel, state
and direction, and in the backward pass once more. gpu_steps.py has what is around the scan.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_steps import measure_steps
from gpu_timing import hold, least_bytes, passes, rows_of, save, size
from torch import Tensor

from vision_ssm.analysis.machine import environment
from vision_ssm.bench import PRESETS, Settings, draw_memory, draw_speed, run_benchmark
from vision_ssm.ops import Traversal, selective_scan

Scan = tuple[int, tuple[int, int], int, int, str]  # batch, (height, width) of the map, channels, states, walks
SCANS: dict[str, Scan] = {
    "64 x 1,025 tokens": (64, (1, 1025), 768, 16, "one"),
    "256 x 197 tokens, both ways": (256, (1, 197), 384, 16, "both"),
    "8 x 6,085 tokens, both ways": (8, (1, 6085), 384, 16, "both"),
    "1 x 6,085 tokens, both ways": (1, (1, 6085), 384, 16, "both"),
    "1 x 100,000 tokens": (1, (1, 100_000), 384, 16, "one"),
    "64 x 56 x 56 tokens, cross, 1 state": (64, (56, 56), 192, 1, "cross"),
}
MODELS: dict[str, tuple[str, ...]] = {
    "vim_tiny": PRESETS["vim"]["models"],
    "vim_small": (*PRESETS["vim-small"]["models"], "deit_small_patch16_224+unfused"),
    "hierarchical": tuple(name for name in PRESETS["hierarchical"]["models"] if "mobilenet" not in name),
}
SIZES = (224, 512, 768, 1024, 1248, 2048)


def walks_of(kind: str, height: int, width: int) -> list[Traversal]:
    """The walks of one of SCANS."""
    if kind == "cross":
        return [walk(height, width, reverse=r) for r in (False, True) for walk in (Traversal.rows, Traversal.columns)]
    return [Traversal.sequence(height * width, reverse=reverse) for reverse in (False, True)][: 1 + (kind == "both")]


def inputs(scan: Scan, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Random arguments of the public scan; step sizes from 0.01 to 1, as in trained networks."""
    batch, (height, width), channels, states, kind = scan
    tokens, walks = height * width, walks_of(kind, height, width)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    own = len(walks)
    return {
        "u": normal(batch, own, tokens, channels).to(dtype),
        "delta": (normal(batch, own, tokens, channels) - 3).to(dtype),
        "A": -torch.arange(1.0, states + 1, device=device).expand(own, channels, states).contiguous(),
        "B": normal(batch, own, tokens, states).to(dtype),
        "C": normal(batch, own, tokens, states).to(dtype),
        "D": torch.ones(own, channels, device=device),
        "z": normal(batch, tokens, channels).to(dtype),
        "delta_bias": torch.zeros(own, channels, device=device),
        "traversals": walks,
    }


def floors(arguments: dict[str, Any], bandwidth: float, exponentials: float) -> dict[str, dict[str, float]]:
    """Least seconds of a scan for each of FORMS, by bytes and by exponentials."""
    read = size(*(arguments[n] for n in ("u", "delta", "B", "C", "z")))
    updates = arguments["u"].numel() * arguments["A"].shape[2]
    found = {}
    for count, (form, moved) in enumerate(least_bytes(read, size(arguments["z"]), read, read).items(), 1):
        by = {"bytes": moved / bandwidth, "exponentials": count * updates / exponentials}
        found[form] = {**by, "seconds": max(by.values())}
    return found


def mamba_scan() -> tuple[Callable[..., Tensor] | None, str]:
    """Return mamba_ssm's scan, or None and why there is none."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        return None, f"mamba_ssm cannot be imported: {error}"
    return selective_scan_fn, ""


def channel_first(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The arguments of one direction as mamba_ssm takes them: [B, C, L], already laid out, which is not timed."""
    inner = {n: arguments[n][:, 0].transpose(1, 2).contiguous() for n in ("u", "delta", "B", "C")}
    inner["z"] = arguments["z"].transpose(1, 2).contiguous()
    return {**inner, **{n: arguments[n][0] for n in ("A", "D", "delta_bias")}}


def check(device: str) -> None:
    """Hold the scan to the reference in float64."""
    arguments = inputs((2, (12, 11), 40, 16, "cross"), torch.float32, device)
    wide: dict[str, Any] = {k: v.double().cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    exact = selective_scan(**wide, backend="reference")
    hold("the triton backend", selective_scan(**arguments, backend="triton").cpu(), exact, 1e-6)


def measure_scans(rounds: int, device: str = "cuda") -> dict[str, Any]:
    """Time all of SCANS in both directions of time, and print a line for each."""
    from gpu_ceilings import copied_bytes_per_second, exponentials_per_second

    check(device)
    bandwidth, exponentials = copied_bytes_per_second(), exponentials_per_second()
    print(f"copy {bandwidth / 1e12:.2f} TB/s (read + written), exponentials {exponentials / 1e12:.2f} T/s")
    theirs, missing = mamba_scan()
    if theirs is None:
        print(f"no comparison with mamba_ssm: {missing}")
    rows = []
    for name, scan in SCANS.items():
        for dtype in (torch.bfloat16, torch.float32):
            arguments = inputs(scan, dtype, device)
            tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
            others = {"traversals": arguments["traversals"], "backend": "triton"}
            runs = {"vision_ssm": passes(selective_scan, tensors, others)}
            if theirs is not None and len(arguments["traversals"]) == 1:
                runs["mamba_ssm"] = passes(theirs, channel_first(arguments), {"delta_softplus": True})
            what = {"scan": name, "dtype": str(dtype).removeprefix("torch.")}
            rows += rows_of(what, runs, floors(arguments, bandwidth, exponentials), "mamba_ssm", rounds)
            del runs, tensors, arguments
            torch.cuda.empty_cache()
    ceilings = {"copied_bytes_per_second": bandwidth, "exponentials_per_second": exponentials}
    return {"ceilings": ceilings, "mamba_ssm": missing or "measured", "rounds": rounds, "rows": rows}


def measure_models(options: argparse.Namespace) -> None:
    """Run the bench package on each comparison and mode, and keep its files and plots."""
    for name in options.models:
        for mode in options.modes:
            settings = Settings(
                MODELS[name],
                tuple((side, side) for side in options.sizes),
                (torch.get_num_threads(),),
                (options.batch,),
                tuple(options.dtype),
                mode,
                options.rounds,
                "cuda",
            )
            path = options.output / f"gpu_{name}_{mode}.json"
            print(settings.command(), flush=True)
            report = run_benchmark(settings, on_group=lambda report, _, path=path: report.save(path))  # type: ignore[misc]
            report.save(path)
            found = report.to_dict()
            for row in found["rows"]:
                speed = f"{row['images_per_second']:.4g} images/s" if row["images_per_second"] else row["error"]
                print(f"  {row['model']:40} {row['height']:5} {row['dtype']:9} {speed}")
            for draw, what, known in ((draw_speed, "speed", "seconds"), (draw_memory, "memory", "memory")):
                if len({row["height"] for row in found["rows"] if row[known] and not row["error"]}) > 1:
                    draw(found, path.with_name(f"{path.stem}_{what}.png"))
            if report.interrupted:
                raise KeyboardInterrupt


def main() -> None:
    """Measure, print and write the results; exit code 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for the results")
    parser.add_argument("--only", choices=("scan", "steps", "models"))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=("inference", "training"), default=["inference", "training"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="sides in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images per pass")
    parser.add_argument("--dtype", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "benchmarks/gpu.py measures on a CUDA device, and torch finds none here; "
            "for the CPU use benchmarks/scan.py and `vision-ssm bench`.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, measure, peer in (("scan", measure_scans, "mamba_ssm"), ("steps", measure_steps, "torch")):
        if options.only in (None, name):
            machine = environment().to_dict()
            found = {
                "command": " ".join(["python", *sys.argv]),
                "device": torch.cuda.get_device_name(),
                "machine": {k: machine[k] for k in ("processor", "cores", "system", "versions")},
                **measure(options.rounds),
            }
            save(found, peer, options.output / f"gpu_{name}.json")
    if options.only in (None, "models"):
        measure_models(options)


if __name__ == "__main__":
    main()
