"""Speed and memory on a GPU: the scan against its floor and against mamba_ssm, and models beside their peers.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only scan
    python benchmarks/gpu.py --only models --modes inference --sizes 224 1248 --batch 8

Writes results/gpu_scan.json and .png, and for every comparison of models and mode results/gpu_NAME_MODE.json with a
plot of speed and one of memory. Needs a CUDA device.

The floor of a scan is the larger of two times, both constants measured in the same run: the bytes that it cannot but
read and write once, at the rate of a large copy; and its exponentials, at the rate of a kernel that computes nothing
else. Forward: u, delta, B, C and the gate in, y out, one exponential for each token, channel, state and direction.
Forward and backward: these and once more with the gradient of y in and the gradients of the inputs out, so two
exponentials. That the kernels take more of either is what the ratio to the floor shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_ssm.analysis.machine import environment
from vision_ssm.bench import PRESETS, Settings, draw_memory, draw_speed, run_benchmark
from vision_ssm.inference.report import BLUE, GREY, ORANGE, png_figure
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
    """Least seconds of a forward pass, and of forward and backward, by bytes and by exponentials."""
    through = ("u", "delta", "B", "C", "z")
    read = sum(arguments[n].numel() * arguments[n].element_size() for n in through)
    y = arguments["z"].numel() * arguments["z"].element_size()
    updates = arguments["u"].numel() * arguments["A"].shape[2]
    found = {}
    for form, moved, count in (("forward", read + y, 1), ("forward and backward", 3 * read + 2 * y, 2)):
        by = {"bytes": moved / bandwidth, "exponentials": count * updates / exponentials}
        found[form] = {**by, "seconds": max(by.values())}
    return found


def passes(
    run: Callable[..., Tensor], tensors: dict[str, Tensor], others: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what runs a forward pass, and what runs forward and backward."""
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    with torch.no_grad():
        gradient = torch.randn_like(run(**tensors, **others))

    def forward() -> Tensor:
        with torch.no_grad():
            return run(**tensors, **others)

    def both() -> Any:
        return torch.autograd.grad(run(**leaves, **others), list(leaves.values()), gradient)

    return forward, both


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


def check() -> None:
    """Refuse to time kernels whose results are wrong."""
    arguments = inputs((2, (12, 11), 40, 16, "cross"), torch.float32, "cuda")
    wide = {k: v.double().cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    exact = selective_scan(**wide, backend="reference")
    error = (selective_scan(**arguments, backend="triton").double().cpu() - exact).norm() / exact.norm()
    if error > 1e-6:
        raise SystemExit(f"the triton backend is off by {error:.1e}: fix it before timing it")


def measure_scans(rounds: int) -> dict[str, Any]:
    """Time all of SCANS in both directions of time, and print a line for each."""
    from gpu_ceilings import copied_bytes_per_second, exponentials_per_second, seconds

    check()
    bandwidth, exponentials = copied_bytes_per_second(), exponentials_per_second()
    print(f"copy {bandwidth / 1e12:.2f} TB/s (read + written), exponentials {exponentials / 1e12:.2f} T/s")
    theirs, missing = mamba_scan()
    if theirs is None:
        print(f"no comparison with mamba_ssm: {missing}")
    rows = []
    for name, scan in SCANS.items():
        for dtype in (torch.bfloat16, torch.float32):
            arguments = inputs(scan, dtype, "cuda")
            least = floors(arguments, bandwidth, exponentials)
            tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
            others = {"traversals": arguments["traversals"], "backend": "triton"}
            runs = {"vision_ssm": passes(selective_scan, tensors, others)}
            if theirs is not None and len(arguments["traversals"]) == 1:
                runs["mamba_ssm"] = passes(theirs, channel_first(arguments), {"delta_softplus": True})
            for form, place in (("forward", 0), ("forward and backward", 1)):
                took: dict[str, list[float]] = {who: [] for who in runs}
                for _ in range(rounds):  # in turn, so that a clock that drifts treats them alike
                    for who, both in runs.items():
                        took[who] += seconds(both[place], rounds=1)
                median = {who: statistics.median(values) for who, values in took.items()}
                row = {
                    "scan": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "pass": form,
                    "seconds": median,
                    "samples": took,
                    "floor": least[form],
                    "over_floor": median["vision_ssm"] / least[form]["seconds"],
                    "over_mamba_ssm": median["vision_ssm"] / median["mamba_ssm"] if "mamba_ssm" in median else None,
                }
                rows.append(row)
                beside = f", {row['over_mamba_ssm']:.2f} x mamba_ssm" if row["over_mamba_ssm"] else ""
                print(
                    f"{name:38} {row['dtype']:9} {form:21} {1e3 * median['vision_ssm']:8.3f} ms, "
                    f"{row['over_floor']:.2f} x floor{beside}",
                    flush=True,
                )
            del runs, tensors, arguments
            torch.cuda.empty_cache()
    ceilings = {"copied_bytes_per_second": bandwidth, "exponentials_per_second": exponentials}
    return {"ceilings": ceilings, "mamba_ssm": missing or "measured", "rounds": rounds, "rows": rows}


def draw_scans(found: dict[str, Any], path: Path) -> None:
    """Draw each scan's time over its floor as bars, ours and mamba_ssm's."""
    with png_figure(path, (9.2, 0.42 * len(found["rows"]) + 1.2)) as figure:
        axes = figure.subplots()
        labels = []
        for at, row in enumerate(found["rows"]):
            for offset, who, colour in ((-0.2, "vision_ssm", BLUE), (0.2, "mamba_ssm", ORANGE)):
                if who in row["seconds"]:
                    axes.barh(at + offset, row["seconds"][who] / row["floor"]["seconds"], 0.36, color=colour)
            labels.append(f"{row['scan']}, {row['dtype']}, {row['pass']}")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.axvline(1, color=GREY)
        axes.set_xlabel("time / floor (blue: vision_ssm, orange: mamba_ssm)")


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
            report = run_benchmark(settings, on_group=lambda report, _, path=path: report.save(path))
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
    parser.add_argument("--only", choices=("scan", "models"))
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
    if options.only != "models":
        machine = environment().to_dict()
        found = {
            "command": " ".join(["python", *sys.argv]),
            "device": torch.cuda.get_device_name(),
            "machine": {k: machine[k] for k in ("processor", "cores", "system", "versions")},
            **measure_scans(options.rounds),
        }
        (options.output / "gpu_scan.json").write_text(json.dumps(found, indent=1) + "\n")
        draw_scans(found, options.output / "gpu_scan.png")
    if options.only != "scan":
        measure_models(options)


if __name__ == "__main__":
    main()
