"""What the GPU at hand can do at most, as the floors of benchmarks/gpu.py take it: copies and exponentials.

And whether some of a scan's exponentials are better off on the multiply-add units. Importing this loads triton and
needs a GPU to be of use, or triton's interpreter.
"""
# ruff: noqa: RUF005 -- triton does not unpack a tuple within another.

from __future__ import annotations

import statistics
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

LENGTH, ROUNDS = 4096, 512  # elements of a program, exponentials of each
LANES, STEPS, STATES = 128, 512, 16  # of a program with the arithmetic of a scan; states of each lane
# Eighths of the exponentials that are polynomials. Compiled for compute capability 9.0, a step of 16 exponentials is 86
# instructions of a warp, and every polynomial adds nine. With one issued each clock and eight clocks for a special
# function that is at least 128 clocks with no polynomial, 112 with two, 123 with four and 159 with eight; the loads
# that a real scan has too leave less to gain.
SHARES = (0, 1, 2, 4)
_STATES: tl.constexpr = tl.constexpr(STATES)


@triton.jit
def _exponentials(x, LENGTH: tl.constexpr, ROUNDS: tl.constexpr):
    at = x + tl.program_id(0).to(tl.int64) * LENGTH + tl.arange(0, LENGTH)
    value = tl.load(at)
    for _ in range(ROUNDS):
        value = tl.exp2(-value)
    tl.store(at, value)


@triton.jit
def exp2_polynomial(x):
    """Return 2^x for x from -126 to 127 to a relative 2e-7 (x below as -126), without a special function.

    Adding 1.5 * 2^23 rounds x to an integer, which the sum has in its low bits; they are moved to the exponent. The
    polynomial is the minimax one of relative error on [-1/2, 1/2] with a constant of one, 9.2e-8 off.
    """
    x = tl.maximum(x, -126.0)
    shifted = x + 12582912.0
    part = x - (shifted - 12582912.0)
    power = part * 0.001326472731307149 + 0.009671512991189957
    power = power * part + 0.05550733581185341
    power = power * part + 0.24022242426872253
    power = power * part + 0.6931470036506653
    power = power * part + 1.0
    return (power.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)


@triton.jit
def powers(x, y, LENGTH: tl.constexpr):
    """Write y = 2^x by the polynomial."""
    at = tl.program_id(0) * LENGTH + tl.arange(0, LENGTH)
    tl.store(y + at, exp2_polynomial(tl.load(x + at)))


@triton.jit
def scan_arithmetic(lanes, states, y, steps, EIGHTHS: tl.constexpr, LANES: tl.constexpr):
    """Run a scan's arithmetic and nothing else: EIGHTHS of every eight states decay by the polynomial.

    A lane has STATES states, as in the forward scan: two products and two multiply-adds for each exponential.
    ``lanes`` [2, total] are steps and inputs; steps change all the time, so that nothing can leave the loop. ``states``
    [3, STATES, LANES] are rates, B and C; ``y`` is [total].
    """
    lane = tl.arange(0, LANES)
    at = tl.program_id(0).to(tl.int64) * LANES + lane
    step = tl.load(lanes + at)
    x = tl.load(lanes + tl.num_programs(0).to(tl.int64) * LANES + at)
    total = tl.zeros([LANES], tl.float32)
    rates, b, c, h = (), (), (), ()
    for s in tl.static_range(_STATES):
        rates = rates + (tl.load(states + s * LANES + lane),)
        b = b + (tl.load(states + (_STATES + s) * LANES + lane),)
        c = c + (tl.load(states + (2 * _STATES + s) * LANES + lane),)
        h = h + (total,)
    for _ in range(steps):
        drive = step * x
        after = ()
        for s in tl.static_range(_STATES):
            decay = exp2_polynomial(step * rates[s]) if s % 8 < EIGHTHS else tl.exp2(step * rates[s])
            after = after + (decay * h[s] + drive * b[s],)
            total += after[s] * c[s]
        h = after
        step = step * 0.999 + 0.0001
    tl.store(y + at, total)


def seconds(run: Callable[[], object], rounds: int = 10, least: float = 0.02) -> list[float]:
    """Seconds per call by CUDA events: ``rounds`` samples, each over calls that take ``least`` seconds together."""

    def sample(calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls

    run()  # compiles
    calls = max(1, round(least / sample(3)))
    return [sample(calls) for _ in range(rounds)]


def copied_bytes_per_second() -> float:
    """Bytes read and written per second in copies of 1 GiB."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / statistics.median(seconds(lambda: target.copy_(source)))


def exponentials_per_second() -> float:
    """2^x per second in float32, in chains that leave memory alone."""
    programs = 32 * torch.cuda.get_device_properties("cuda").multi_processor_count
    x = torch.rand(programs * LENGTH, device="cuda")
    took = seconds(lambda: _exponentials[(programs,)](x, LENGTH, ROUNDS, num_warps=8, enable_fp_fusion=True))
    return programs * LENGTH * ROUNDS / statistics.median(took)


def scan_inputs(programs: int, device: str) -> tuple[Tensor, Tensor]:
    """``lanes`` and ``states`` of :func:`scan_arithmetic`: steps from 0.01 to 1, rates as in trained networks."""
    generator = torch.Generator(device).manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    lanes, states = uniform(2, programs * LANES), uniform(3, STATES, LANES)
    lanes[0] = 0.01 * 100 ** lanes[0]
    states[0] = -(1 + torch.arange(STATES, device=device)[:, None]) * (0.5 + states[0])
    return lanes, states


def scan_results(lanes: Tensor, states: Tensor, steps: int, eighths: int) -> Tensor:
    """Return y [total] of :func:`scan_arithmetic`."""
    y = torch.empty_like(lanes[0])
    warps = LANES // 32
    scan_arithmetic[(len(y) // LANES,)](
        lanes, states, y, steps, EIGHTHS=eighths, LANES=LANES, num_warps=warps, enable_fp_fusion=True
    )
    return y


def exact_scan_results(lanes: Tensor, states: Tensor, steps: int) -> Tensor:
    """The same in torch and float64."""
    step, x = lanes.double()
    rates, b, c = states.double().repeat(1, 1, len(x) // LANES)
    h, total = torch.zeros_like(rates), torch.zeros_like(x)
    for _ in range(steps):
        h = torch.exp2(step * rates) * h + step * x * b
        total += (h * c).sum(0)
        step = step * 0.999 + 0.0001
    return total


def check_polynomials(device: str) -> None:
    """Refuse to time powers of two that are wrong, alone or in a scan's arithmetic."""
    x = torch.linspace(-126, 127, 16 * LENGTH, device=device)
    y = torch.empty_like(x)
    powers[(16,)](x, y, LENGTH=LENGTH, enable_fp_fusion=True)
    errors = {"2^x by the polynomial": float((y.double() / torch.exp2(x.double()) - 1).abs().max())}
    inputs = scan_inputs(2, device)
    exact = exact_scan_results(*inputs, 10)
    for eighths in SHARES:
        found = scan_results(*inputs, 10, eighths).double()
        errors[f"a scan with {eighths}/8 of polynomials"] = float((found - exact).norm() / exact.norm())
    for what, error in errors.items():
        if not error <= 2e-6:
            raise SystemExit(f"{what} is off by {error:.1e}: fix it before timing it")


def exponentials_per_second_by_share(rounds: int) -> dict[str, list[float]]:
    """2^x per second beside a scan's multiply-adds, timed in turn, for each share of polynomials ('0', '1/8', ...)."""
    check_polynomials("cuda")
    inputs = scan_inputs(32 * torch.cuda.get_device_properties("cuda").multi_processor_count, "cuda")
    count = inputs[0].shape[1] * STATES * STEPS
    rates: dict[str, list[float]] = {str(Fraction(eighths, 8)): [] for eighths in SHARES}
    for _ in range(rounds):
        for eighths, found in zip(SHARES, rates.values(), strict=True):
            took = seconds(partial(scan_results, *inputs, STEPS, eighths), rounds=1)
            found += [count / value for value in took]
    return rates
