"""Speed and memory on a GPU: the operators against their floors and against others, and models beside their peers.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only scan
    python benchmarks/gpu.py --only steps
    python benchmarks/gpu.py --only models --modes inference --sizes 224 1248 --batch 8

Writes results/gpu_scan.json and .png, results/gpu_steps.json and .png, and for every comparison of models and mode
results/gpu_NAME_MODE.json with a plot of speed and one of memory. Needs a CUDA device.

The floor of a pass is the bytes that it cannot but read and write once, at the rate of a large copy in the same run.
Forward: inputs in, outputs out. Backward: what is saved and the gradients of the outputs in, the gradients of the
inputs out. Tensors that the caches hold can be faster than that.

- Scan: u, delta, B, C and the gate in, y out; all inputs are saved. Its floor is the larger of this and its
  exponentials, at the rate of a kernel that computes nothing else: one for each token, channel, state and direction,
  and in the backward pass once more.
- Convolution (a step): x, taps and bias in, one result for each direction out; all inputs are saved.
- Addition and norm (a step): x, what is added, and the norm's parameters in, the sum and its norm out. The sum and the
  parameters are saved. The gradient of x is that of what is added, written once unless their dtypes differ.

Steps are timed beside the torch operations that they replace. ``add_norm`` is asked each time whether it applies, as
layers do. Calls follow one another, so that a time is that of launching where this takes longer than the kernels: from
what size on ``add_norm`` is the faster one is what LEAST_ELEMENTS of ops/norm.py should be. With the steps comes
whether some of a scan's exponentials should be polynomials: the rate of exponentials beside a scan's multiply-adds
where none are, an eighth, a quarter and a half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.analysis.machine import environment
from vision_ssm.bench import PRESETS, Settings, draw_memory, draw_speed, run_benchmark
from vision_ssm.inference.report import BLUE, GREY, ORANGE, png_figure
from vision_ssm.ops import Traversal, add_norm, add_norm_applies, causal_conv1d, norm, selective_scan
from vision_ssm.ops.conv import _shifted_products
from vision_ssm.storage import whole_file

Scan = tuple[int, tuple[int, int], int, int, str]  # batch, (height, width) of the map, channels, states, walks
SCANS: dict[str, Scan] = {
    "64 x 1,025 tokens": (64, (1, 1025), 768, 16, "one"),
    "256 x 197 tokens, both ways": (256, (1, 197), 384, 16, "both"),
    "8 x 6,085 tokens, both ways": (8, (1, 6085), 384, 16, "both"),
    "1 x 6,085 tokens, both ways": (1, (1, 6085), 384, 16, "both"),
    "1 x 100,000 tokens": (1, (1, 100_000), 384, 16, "one"),
    "64 x 56 x 56 tokens, cross, 1 state": (64, (56, 56), 192, 1, "cross"),
}
CONVS: dict[str, tuple[int, int, int, tuple[bool, ...]]] = {  # batch, tokens, channels, directions
    "64 x 1,025 x 768": (64, 1025, 768, (False,)),
    "256 x 197 x 384, both ways": (256, 197, 384, (False, True)),
    "8 x 6,085 x 384, both ways": (8, 6085, 384, (False, True)),
    "1 x 6,085 x 384, both ways": (1, 6085, 384, (False, True)),
}
TAPS = 4
NORMS = (*((2**doublings, 197, 192) for doublings in range(9)), (8, 6085, 192), (64, 1025, 768))
# Of x, and of all else. The residual stream of a model in bfloat16 may be float32.
STREAMS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16 on float32": (torch.float32, torch.bfloat16),
}
FORMS = ("forward", "forward and backward")
DRAWN = 2**23  # elements: with fewer the caches would hold most, and the floor of bytes is not theirs
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


def size(*tensors: Tensor | None) -> int:
    """Bytes of all that are there."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def least_bytes(read: int, written: int, saved: int, gradients: int) -> dict[str, int]:
    """Bytes of each of FORMS, from those of the inputs, the outputs, what is saved, and the inputs' gradients."""
    forward = read + written
    return dict(zip(FORMS, (forward, forward + saved + written + gradients), strict=True))


def floors(arguments: dict[str, Any], bandwidth: float, exponentials: float) -> dict[str, dict[str, float]]:
    """Least seconds of a scan for each of FORMS, by bytes and by exponentials."""
    read = size(*(arguments[n] for n in ("u", "delta", "B", "C", "z")))
    updates = arguments["u"].numel() * arguments["A"].shape[2]
    found = {}
    for count, (form, moved) in enumerate(least_bytes(read, size(arguments["z"]), read, read).items(), 1):
        by = {"bytes": moved / bandwidth, "exponentials": count * updates / exponentials}
        found[form] = {**by, "seconds": max(by.values())}
    return found


def outputs(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What an operator returns, as a tuple."""
    return (y,) if isinstance(y, Tensor) else tuple(y)


def passes(
    run: Callable[..., Any], tensors: dict[str, Tensor], others: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what runs each of FORMS."""
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    with torch.no_grad():
        gradients = [torch.randn_like(y) for y in outputs(run(**tensors, **others))]

    def forward() -> Any:
        with torch.no_grad():
            return run(**tensors, **others)

    def both() -> Any:
        return torch.autograd.grad(outputs(run(**leaves, **others)), list(leaves.values()), gradients)

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


def hold(what: str, found: Tensor, exact: Tensor, limit: float) -> None:
    """Refuse to time a kernel whose results are wrong."""
    error = float((found.double() - exact).norm() / exact.norm())
    if not error <= limit:
        raise SystemExit(f"{what} is off by {error:.1e}: fix it before timing it")


def check(device: str) -> None:
    """Hold the scan to the reference in float64."""
    arguments = inputs((2, (12, 11), 40, 16, "cross"), torch.float32, device)
    wide = {k: v.double().cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    exact = selective_scan(**wide, backend="reference")
    hold("the triton backend", selective_scan(**arguments, backend="triton").cpu(), exact, 1e-6)


def rows_of(
    what: dict[str, Any],
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]],
    least: dict[str, dict[str, float]],
    peer: str,
    rounds: int,
) -> list[dict[str, Any]]:
    """Time 'vision_ssm' and, where it is among the ``runs``, its peer; return and print a row for each of FORMS.

    ``least`` has the floors. Rows begin with ``what``, whose first value and dtype are printed.
    """
    from gpu_ceilings import seconds

    rows = []
    for place, form in enumerate(FORMS):
        took: dict[str, list[float]] = {who: [] for who in runs}
        for _ in range(rounds):  # in turn, so that a clock that drifts treats them alike
            for who, forms in runs.items():
                took[who] += seconds(forms[place], rounds=1)
        median = {who: statistics.median(values) for who, values in took.items()}
        ours = median["vision_ssm"]
        row = {
            **what,
            "pass": form,
            "seconds": median,
            "samples": took,
            "floor": least[form],
            "over_floor": ours / least[form]["seconds"],
            f"over_{peer}": ours / median[peer] if peer in median else None,
        }
        rows.append(row)
        beside = f", {row[f'over_{peer}']:.2f} x {peer}" if peer in median else ""
        print(
            f"{next(iter(what.values())):42} {what['dtype']:19} {form:21} {1e3 * ours:8.3f} ms, "
            f"{row['over_floor']:.2f} x floor{beside}",
            flush=True,
        )
    return rows


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


class Step(NamedTuple):
    """An operator's call beside the torch operations that it replaces."""

    what: dict[str, Any]  # the beginning of its rows
    ours: Callable[..., Any]
    torch: Callable[..., Any]
    tensors: dict[str, Tensor]
    others: dict[str, Any]
    bytes: dict[str, int]  # for each of FORMS


def conv_step(name: str, shape: tuple[int, int, int], reverse: tuple[bool, ...], dtype: str, device: str) -> Step:
    """The convolution of x [B, L, C]; taps and bias are in x's dtype, as a model has them."""
    channels, directions = shape[2], len(reverse)
    generator = torch.Generator(device).manual_seed(0)
    tensors = {
        key: torch.randn(*of, generator=generator, device=device).to(getattr(torch, dtype))
        for key, of in {"x": shape, "weight": (directions, channels, TAPS), "bias": (directions, channels)}.items()
    }
    read = size(*tensors.values())
    what = {"step": f"causal_conv1d {name}", "elements": tensors["x"].numel(), "dtype": dtype}
    others = {"reverse": reverse, "activation": True}
    moved = least_bytes(read, directions * size(tensors["x"]), read, read)
    return Step(what, causal_conv1d, _shifted_products, tensors, others, moved)


def norm_step(shape: tuple[int, int, int], kind: str, dtypes: str, device: str) -> Step:
    """The residual addition and the norm for x [B, L, C]; ``dtypes`` is of STREAMS."""
    stream, dtype = STREAMS[dtypes]
    generator = torch.Generator(device).manual_seed(0)

    def normal(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator, device=device)

    channels = shape[2]
    tensors = {"x": normal(*shape).to(stream), "added": normal(*shape).to(dtype), "weight": normal(channels).to(dtype)}
    if kind == "layer":
        tensors["bias"] = normal(channels).to(dtype)
    parameters = size(tensors["weight"], tensors.get("bias"))
    x, added = size(tensors["x"]), size(tensors["added"])  # bytes of the sum, and of its norm
    gradients = (x if stream == dtype else x + added) + parameters
    moved = least_bytes(x + added + parameters, x + added, x + parameters, gradients)
    name = " x ".join(f"{side:,}" for side in shape)
    what = {"step": f"add_norm {name}, {kind}", "norm": kind, "elements": tensors["x"].numel(), "dtype": dtypes}
    return Step(what, asked_add_norm, separate_add_norm, tensors, {"kind": kind}, moved)


def asked_add_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None = None, *, kind: str) -> Any:
    """``add_norm`` as layers call it: whether it applies is asked before, which takes time too."""
    if not add_norm_applies(x, added, weight, bias):
        raise SystemExit(f"add_norm does not apply to {list(x.shape)} in {x.dtype} on {x.device}")
    return add_norm(x, added, weight, bias, kind=kind)


def separate_add_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None = None, *, kind: str) -> Any:
    """The two torch operations, with the casts of the layers where the stream is wider than the weights."""
    stream = x + added
    scale = weight.to(stream.dtype)
    if kind == "layer":
        normalised = F.layer_norm(stream, scale.shape, scale, None if bias is None else bias.to(stream.dtype), 1e-5)
    else:
        normalised = F.rms_norm(stream, scale.shape, scale, 1e-5)
    return stream, normalised.to(weight.dtype)


def steps(device: str) -> Iterator[Step]:
    """All of CONVS and NORMS, one after the other since a GPU may not hold them together."""
    for name, (*shape, reverse) in CONVS.items():
        for dtype in ("float32", "bfloat16"):
            yield conv_step(name, tuple(shape), reverse, dtype, device)
    for kind in ("rms", "layer"):
        for dtypes in STREAMS:
            for shape in NORMS:
                yield norm_step(shape, kind, dtypes, device)


def check_steps(device: str) -> None:
    """Hold results and gradients of the steps to torch's in float64."""
    small = (2, 37, 72)
    found = [norm_step(small, kind, dtypes, device) for kind in ("rms", "layer") for dtypes in STREAMS]
    found += [conv_step("small", small, (False, True), dtype, device) for dtype in ("float32", "bfloat16")]
    for step in found:
        wide = {name: x.double() for name, x in step.tensors.items()}
        limit = 2e-6 if step.what["dtype"] == "float32" else 1e-2
        ours, exact = (results(run, x, step.others) for run, x in ((step.ours, step.tensors), (step.torch, wide)))
        for name, value in ours.items():
            hold(f"{step.what['step']}, {step.what['dtype']}: {name}", value, exact[name], limit)


def results(run: Callable[..., Any], tensors: dict[str, Tensor], others: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs and, for the same gradient of each whatever the dtype, the gradients of the inputs."""
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    ys = outputs(run(**leaves, **others))
    # Eighths: bfloat16 holds them exactly.
    weights = [(torch.arange(y.numel(), device=y.device) % 17 / 8 - 1).view(y.shape).to(y.dtype) for y in ys]
    gradients = torch.autograd.grad(ys, list(leaves.values()), weights)
    named = {f"output {at}": y.detach() for at, y in enumerate(ys)}
    return named | {f"the gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}


def measure_steps(rounds: int, device: str = "cuda") -> dict[str, Any]:
    """Time all of :func:`steps` and the shares of exponentials, and print a line for each."""
    from gpu_ceilings import copied_bytes_per_second, exponentials_per_second_by_share

    least_elements = norm.LEAST_ELEMENTS
    rows = []
    with mock.patch.object(norm, "LEAST_ELEMENTS", 0):  # small streams are timed too
        check_steps(device)
        shares = exponentials_per_second_by_share(rounds)
        bandwidth = copied_bytes_per_second()
        print(f"copy {bandwidth / 1e12:.2f} TB/s (read + written)")
        for share, samples in shares.items():
            rate = statistics.median(samples) / 1e12
            print(f"exponentials beside a scan's multiply-adds, {share} of them polynomials: {rate:.2f} T/s")
        for step in steps(device):
            least = {form: {"bytes": n / bandwidth, "seconds": n / bandwidth} for form, n in step.bytes.items()}
            runs = {
                who: passes(run, step.tensors, step.others)
                for who, run in (("vision_ssm", step.ours), ("torch", step.torch))
            }
            rows += rows_of(step.what, runs, least, "torch", rounds)
            del runs, step
            torch.cuda.empty_cache()
    found = crossings(rows)
    for case in found:
        since = "at no size" if case["elements"] is None else f"from {case['elements']:,} elements on"
        print(f"add_norm is faster {since}: {case['norm']}, {case['dtype']}, {case['pass']}")
    print(f"LEAST_ELEMENTS is {least_elements:,}")
    return {
        "ceilings": {"copied_bytes_per_second": bandwidth},
        "exponentials_per_second_by_share": shares,
        "least_elements": least_elements,
        "add_norm_faster_from": found,
        "rounds": rounds,
        "rows": rows,
    }


def crossings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each norm, dtype and pass the elements from which on ``add_norm`` is faster at every size, None if at none.

    Of the sizes measured: the larger ones are all faster, the next smaller is not.
    """
    cases: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "norm" in row:
            cases.setdefault((row["norm"], row["dtype"], row["pass"]), []).append(row)
    found = []
    for (kind, dtype, form), sizes in cases.items():
        since = None
        for row in sorted(sizes, key=lambda row: row["elements"], reverse=True):
            if row["over_torch"] >= 1:
                break
            since = row["elements"]
        found.append({"norm": kind, "dtype": dtype, "pass": form, "elements": since})
    return found


def draw_rows(rows: list[dict[str, Any]], peer: str, path: Path) -> None:
    """Draw each row's time over its floor as bars, ours and the peer's."""
    with png_figure(path, (9.2, 0.42 * len(rows) + 1.2)) as figure:
        axes = figure.subplots()
        labels = []
        for at, row in enumerate(rows):
            for offset, who, colour in ((-0.2, "vision_ssm", BLUE), (0.2, peer, ORANGE)):
                if who in row["seconds"]:
                    axes.barh(at + offset, row["seconds"][who] / row["floor"]["seconds"], 0.36, color=colour)
            labels.append(f"{next(iter(row.values()))}, {row['dtype']}, {row['pass']}")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.axvline(1, color=GREY)
        axes.set_xlabel(f"time / floor (blue: vision_ssm, orange: {peer})")


def save(found: dict[str, Any], peer: str, path: Path) -> None:
    """Write the file, whole or not at all, and beside it the plot."""
    with whole_file(path) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")
    rows = [row for row in found["rows"] if row.get("elements", DRAWN) >= DRAWN]
    draw_rows(rows, peer, path.with_suffix(".png"))


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
