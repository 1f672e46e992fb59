"""benchmarks/gpu.py without a GPU: what it says then; its floors and rows; its kernels interpreted and compiled."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.scan.cases import device_of, needs_triton, use

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu.py"
BF16, F32 = 2, 4  # bytes

COMPILE = """
import triton
from gpu_ceilings import LANES, SHARES, scan_arithmetic
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

types = dict(zip(scan_arithmetic.arg_names, ["*fp32"] * 3 + ["i32"] + ["constexpr"] * 2, strict=True))
for share in SHARES:
    source = ASTSource(fn=scan_arithmetic, signature=types, constexprs={(4,): share, (5,): LANES})
    options = {"num_warps": 4, "enable_fp_fusion": True}
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"].count("ex2.approx"))
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def steps(gpu: Any) -> Any:
    return importlib.import_module("gpu_steps")


@pytest.fixture
def timing(gpu: Any) -> Any:
    return importlib.import_module("gpu_timing")


@pytest.fixture
def ceilings(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/gpu_ceilings.py with made-up rates, and a clock by which a call takes its turn's number in ms."""
    module = importlib.import_module("gpu_ceilings")
    turn = iter(range(1, 1_000_000))

    def seconds(run: Any, rounds: int) -> list[float]:
        run()
        return [next(turn) / 1e3 for _ in range(rounds)]

    monkeypatch.setattr(module, "seconds", seconds)
    monkeypatch.setattr(module, "copied_bytes_per_second", lambda: 1e9)
    monkeypatch.setattr(module, "exponentials_per_second", lambda: 2e9)
    monkeypatch.setattr(module, "exponentials_per_second_by_share", lambda rounds: {"0": [3e12], "1/4": [4e12]})
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "measures on a CUDA device, and torch finds none here" in done.stderr
    assert not (tmp_path / "results").exists()


@needs_triton
def test_powers_of_two_by_the_polynomial(gpu):
    module = importlib.import_module("gpu_ceilings")
    device = device_of("triton")
    edges = torch.tensor([-126.0, -125.5, -1.0, -0.5, 0.0, 0.5, 1.0, 126.5, 127.0, -300.0, -1e30])
    x = torch.cat([edges, torch.linspace(-126, 127, module.LENGTH - len(edges))]).to(device)
    y = torch.empty_like(x)
    module.powers[(1,)](x, y, LENGTH=module.LENGTH)
    exact = torch.exp2(x.double().clamp(min=-126))
    assert float((y.double() / exact - 1).abs().max()) < 2.5e-7
    assert bool((y == exact)[x == x.round()].all())


@needs_triton
def test_a_share_of_polynomials_leaves_the_arithmetic_of_a_scan_the_same(gpu, monkeypatch):
    module = importlib.import_module("gpu_ceilings")
    module.check_polynomials(str(device_of("triton")))
    monkeypatch.setattr(module, "SHARES", (0,))
    monkeypatch.setattr(module, "exact_scan_results", lambda lanes, *_: torch.ones_like(lanes[0]).double())
    with pytest.raises(SystemExit, match="a scan with 0/8 of polynomials is off"):
        module.check_polynomials(str(device_of("triton")))


@needs_triton
def test_every_polynomial_takes_the_place_of_a_special_function(tmp_path):
    changed = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(BENCHMARKS)}
    environment = {**os.environ, **changed}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["16", "14", "12", "8"]


def test_the_floor_of_a_convolution_is_its_bytes(steps):
    step = steps.conv_step("", (2, 5, 6), (False, True), "bfloat16", "cpu")
    x, y, parameters = BF16 * 60, BF16 * 120, BF16 * 2 * 6 * (steps.TAPS + 1)
    forward = x + parameters + y
    assert step.bytes == {"forward": forward, "forward and backward": 2 * forward + x + parameters}


@pytest.mark.parametrize(
    ("kind", "dtypes", "forward", "backward"),
    [
        # x, added, sum, norm; sum, two gradients in, one out for both; the weight twice, and its gradient.
        ("rms", "bfloat16", BF16 * (4 * 60 + 6), BF16 * (4 * 60 + 2 * 6)),
        ("layer", "float32", F32 * (4 * 60 + 12), F32 * (4 * 60 + 2 * 12)),
        # A wide x and sum, with gradients as wide; the gradient of what is added is another.
        ("rms", "bfloat16 on float32", 2 * 60 * (F32 + BF16) + BF16 * 6, 60 * (3 * F32 + 2 * BF16) + BF16 * 2 * 6),
    ],
)
def test_the_floor_of_an_addition_and_norm_is_its_bytes(steps, kind, dtypes, forward, backward):
    step = steps.norm_step((2, 5, 6), kind, dtypes, "cpu")
    assert step.bytes == {"forward": forward, "forward and backward": forward + backward}


def test_the_floor_of_a_scan_is_the_larger_of_bytes_and_exponentials(gpu):
    arguments = gpu.inputs((2, (3, 4), 6, 16, "both"), torch.float32, "cpu")
    read = F32 * (2 * 2 * 12 * (6 + 6 + 16 + 16) + 2 * 12 * 6)
    y, count = F32 * 2 * 12 * 6, 2 * 2 * 12 * 6 * 16
    found = gpu.floors(arguments, bandwidth=1e3, exponentials=1e3)
    assert found["forward"] == {"bytes": (read + y) / 1e3, "exponentials": count / 1e3, "seconds": (read + y) / 1e3}
    assert found["forward and backward"]["bytes"] == (3 * read + 2 * y) / 1e3
    assert gpu.floors(arguments, 1e9, 1e3)["forward and backward"]["seconds"] == 2 * count / 1e3


def test_rows_take_turns_and_compare_medians(timing, ceilings, capsys):
    called = []
    runs = {who: tuple(lambda who=who: called.append(who) for _ in range(2)) for who in ("vision_ssm", "torch")}
    least = {form: {"bytes": 2e-3, "seconds": 2e-3} for form in timing.FORMS}
    first, second = timing.rows_of({"step": "a step", "dtype": "float32"}, runs, least, "torch", 3)
    assert called == ["vision_ssm", "torch"] * 6
    assert first["samples"] == {"vision_ssm": [1e-3, 3e-3, 5e-3], "torch": [2e-3, 4e-3, 6e-3]}
    assert first["seconds"] == {"vision_ssm": 3e-3, "torch": 4e-3} and first["pass"] == "forward"
    assert (first["over_floor"], first["over_torch"]) == (1.5, 0.75) and first["floor"] == least["forward"]
    assert second["over_torch"] == pytest.approx(0.9) and second["pass"] == "forward and backward"
    assert "1.50 x floor, 0.75 x torch" in capsys.readouterr().out
    alone = timing.rows_of({"scan": "a scan", "dtype": "float32"}, {"vision_ssm": runs["torch"]}, least, "mamba_ssm", 1)
    assert alone[0]["over_mamba_ssm"] is None


def test_a_crossing_is_the_least_size_that_no_larger_one_contradicts(steps):
    def rows(form: str, *over: float) -> list[dict[str, Any]]:
        sizes = enumerate(over)
        return [
            {"norm": "rms", "dtype": "float32", "pass": form, "elements": 10**at, "over_torch": x} for at, x in sizes
        ]

    found = steps.crossings(
        [*rows("a", 0.9, 1.1, 0.9, 0.8), *rows("b", 0.9, 0.9, 1.0), *rows("c", 0.5), {"dtype": "x"}]
    )
    assert [(case["pass"], case["elements"]) for case in found] == [("a", 100), ("b", None), ("c", 1)]


@needs_triton
def test_steps_are_checked_measured_and_written(steps, timing, ceilings, monkeypatch, tmp_path, capsys):
    use(monkeypatch)
    monkeypatch.setattr(steps.norm, "LEAST_ELEMENTS", 2**20)
    monkeypatch.setattr(steps, "CONVS", {"1 x 5 x 8": (1, 5, 8, (True,))})
    monkeypatch.setattr(steps, "NORMS", ((1, 5, 8), (2, 5, 8)))
    monkeypatch.setattr(timing, "DRAWN", 80)
    monkeypatch.delitem(steps.STREAMS, "bfloat16")  # the others are enough, and the interpreter slow
    found = steps.measure_steps(2, str(device_of("triton")))
    assert len(found["rows"]) == 2 * (2 + 2 * 2 * 2)
    assert {tuple(row["seconds"]) for row in found["rows"]} == {("vision_ssm", "torch")}
    moved = F32 * (40 + 8 * (steps.TAPS + 1) + 40)  # x, parameters, y
    assert found["rows"][0]["floor"] == {"bytes": moved / 1e9, "seconds": moved / 1e9}
    assert found["least_elements"] == steps.norm.LEAST_ELEMENTS == 2**20
    printed = capsys.readouterr().out
    assert "1/4 of them polynomials: 4.00 T/s" in printed and "LEAST_ELEMENTS is 1,048,576" in printed
    assert printed.count("add_norm is faster") == len(found["add_norm_faster_from"]) == 2 * 2 * 2
    timing.save(found, "torch", tmp_path / "gpu_steps.json")
    assert json.loads((tmp_path / "gpu_steps.json").read_text()) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_steps.json", "gpu_steps.png"]


@needs_triton
def test_scans_are_measured(timing, gpu, ceilings, monkeypatch):
    use(monkeypatch)
    monkeypatch.setattr(gpu, "SCANS", {"small": (1, (1, 5), 8, 2, "one")})
    monkeypatch.setattr(gpu, "check", lambda device: None)
    found = gpu.measure_scans(1, str(device_of("triton")))
    assert [(row["scan"], row["dtype"], row["pass"]) for row in found["rows"]] == [
        ("small", dtype, form) for dtype in ("bfloat16", "float32") for form in timing.FORMS
    ]


@needs_triton
def test_a_wrong_result_is_not_timed(steps, ceilings, monkeypatch):
    use(monkeypatch)

    def wrong(x: Tensor, *args: Any, **named: Any) -> Any:
        return steps.separate_add_norm(x * 1.001, *args, **named)

    monkeypatch.setattr(steps, "asked_add_norm", wrong)
    with pytest.raises(SystemExit, match="add_norm 2 x 37 x 72, rms, float32: output 0 is off"):
        steps.check_steps(str(device_of("triton")))
