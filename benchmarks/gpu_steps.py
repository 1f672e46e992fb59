"""The steps around the scan on a GPU, beside the torch operations that they replace; run by benchmarks/gpu.py.

- Convolution: x, taps and bias in, one result for each direction out; all inputs are saved.
- Addition and norm: x, what is added, and the norm's parameters in, the sum and its norm out. The sum and the
  parameters are saved. The gradient of x is that of what is added, written once unless their dtypes differ.

``add_norm`` is asked each time whether it applies, as layers do. Calls follow one another, so that a time is that of
launching where this takes longer than the kernels: from what size on ``add_norm`` is the faster one is what
LEAST_ELEMENTS of ops/add_norm/op.py should be. With the steps comes whether some of a scan's exponentials should be
polynomials: the rate of exponentials beside a scan's multiply-adds where none are, an eighth, a quarter and a half.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from gpu_timing import hold, least_bytes, outputs, passes, rows_of, size
from torch import Tensor

from vision_ssm.ops import add_norm, add_norm_applies, causal_conv1d
from vision_ssm.ops.add_norm import op as norm
from vision_ssm.ops.conv import reference as conv_reference

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
    return Step(what, causal_conv1d, conv_reference.forward, tensors, others, moved)


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
    for name, (batch, tokens, channels, reverse) in CONVS.items():
        for dtype in ("float32", "bfloat16"):
            yield conv_step(name, (batch, tokens, channels), reverse, dtype, device)
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
