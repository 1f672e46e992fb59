"""The Triton kernels: on a GPU as they are, elsewhere in Triton's interpreter, where a step of a scan takes 30 ms.

Hence the small shapes. test_backends.py runs its own, larger ones on the triton backend where there is a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.ops.scan.cases import (
    GPU,
    Case,
    atrous,
    both_ways,
    check_against_reference,
    cross,
    device_of,
    each_line,
    needs_gpu,
    needs_triton,
    placed,
    random_case,
    use,
)
from vision_ssm.errors import BackendError
from vision_ssm.ops import Traversal, explain, gpu, selective_scan
from vision_ssm.ops.scan import chunked
from vision_ssm.ops.scan import triton as scan_triton
from vision_ssm.ops.scan.contract import CHUNK, ScanCall
from vision_ssm.ops.scan.triton_schedule import WARPS_HELD, WARPS_WANTED, plan

pytestmark = needs_triton


@pytest.fixture(autouse=True)
def single_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)


def one_row_after_the_other(height: int, width: int) -> tuple[Traversal, ...]:
    there = Traversal.each_row(height, width)
    return (Traversal.each_row(height, width, reverse=True).written_as(there),)


@pytest.mark.parametrize("tokens", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1])
def test_lengths(tokens: int) -> None:
    walks = both_ways(tokens)[-1 if tokens > 2 else 0 :]
    check_against_reference(random_case(tokens, walks, batch=1, channels=5, states=4), torch.float32, "triton")


@pytest.mark.parametrize(
    ("walks", "segment_chunks"),
    [
        (both_ways(CHUNK + 2)[1:], 1),
        pytest.param(both_ways(2 * CHUNK + 2)[:1], 2, marks=pytest.mark.slow),
        # Two runs of two chunks each: a segment in which the state starts anew lets nothing through.
        (one_row_after_the_other(2, CHUNK + 2), 3),
        (one_row_after_the_other(7, 3), 2),
    ],
)
def test_two_passes(walks: tuple[Traversal, ...], segment_chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, segment_chunks)
    case = random_case(walks[0].length, walks, batch=1, channels=5, states=4)
    check_against_reference(case, torch.float32, "triton")


def test_two_passes_of_several_directions_and_short_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 1)
    walks = (Traversal.sequence(CHUNK + 3), Traversal(10, 4, 2, 0, 4), Traversal(0, 1, 1, 0, 0))
    case = random_case(CHUNK + 3, walks, batch=1, channels=3, states=2, absent=("z", "D"))
    check_against_reference(case, torch.float32, "triton")


@pytest.mark.parametrize("walks", [cross, atrous, each_line])
@pytest.mark.parametrize("shared", [(), pytest.param(("u",), marks=pytest.mark.slow), ("u", "delta", "B", "C")])
@pytest.mark.parametrize("merge", [True, False])
def test_maps(walks: object, shared: tuple[str, ...], merge: bool) -> None:
    case = random_case(6, walks(2, 3), batch=1, shared=shared, merge=merge, channels=9, states=3)  # type: ignore[operator]
    check_against_reference(case, torch.float32, "triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("walks", [both_ways(11), atrous(3, 4)])
def test_dtypes(dtype: torch.dtype, walks: tuple[Traversal, ...]) -> None:
    shared = ("u", "B") if len(walks) > 2 else ()
    tokens = 12 if len(walks) > 2 else 11
    check_against_reference(random_case(tokens, walks, batch=1, shared=shared, channels=9), dtype, "triton")


@pytest.mark.parametrize("states", [1, *(pytest.param(states, marks=pytest.mark.slow) for states in (2, 3, 8)), 21, 64])
def test_numbers_of_states(states: int) -> None:
    check_against_reference(random_case(5, both_ways(5), batch=1, states=states), torch.float32, "triton")


@pytest.mark.parametrize("channels", [1, 8, 33, 70])
def test_numbers_of_channels(channels: int) -> None:
    check_against_reference(random_case(5, both_ways(5), batch=1, channels=channels), torch.float32, "triton")


@pytest.mark.slow
def test_programs_that_take_several_tasks_and_blocks_of_channels() -> None:
    case = random_case(2, both_ways(2), batch=13, channels=9, states=64)
    schedule = plan(_call(case), 2, backward=True)
    assert schedule.groups < schedule.blocks and schedule.programs < 26
    check_against_reference(case, torch.float32, "triton")


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_missing_options(absent: tuple[str, ...], delta_softplus: bool) -> None:
    case = random_case(6, both_ways(6), batch=1, absent=absent, delta_softplus=delta_softplus)
    check_against_reference(case, torch.float32, "triton")


def test_walks_of_different_length_and_unvisited_tokens() -> None:
    walks = (Traversal.sequence(10), Traversal(1, 4, 2, 0, 4), Traversal(0, 1, 1, 0, 0))
    for shared in ((), ("u", "B")):
        check_against_reference(random_case(10, walks, batch=1, shared=shared), torch.float32, "triton")
    alone = random_case(10, walks[1:2], batch=1, absent=("z",)).to(torch.float32)
    assert alone.run("triton")["y"][:, :1].abs().max() == 0


@pytest.mark.parametrize("shared", [(), ("u", "delta", "B", "C")])
def test_walks_that_share_out_the_tokens_but_write_elsewhere(shared: tuple[str, ...]) -> None:
    halves = Traversal(0, 5, 1, 0, 5), Traversal(5, 5, 1, 0, 5)
    swapped = (halves[0].written_as(halves[1]), halves[1].written_as(halves[0]))
    check_against_reference(random_case(10, swapped, batch=1, shared=shared), torch.float32, "triton")


@pytest.mark.slow
def test_strided_and_expanded_inputs() -> None:
    case = random_case(5, both_ways(5), channels=7, states=4).to(torch.float32)
    strided: dict[str, Tensor | None] = {}
    for name, x in case.tensors.items():
        if x is not None:
            wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
            every_other = wide[..., ::2] if name in ("u", "A", "B") else wide[..., : x.shape[-1]]
            strided[name] = every_other.copy_(x)
    expected, found = case.run("triton"), Case(strided, case.traversals).run("triton")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    one = random_case(5, both_ways(5), batch=1, channels=7, states=4).to(torch.float32)
    two = {n: x.expand(2, *x.shape[1:]) if x is not None and x.shape[0] == 1 else x for n, x in one.tensors.items()}
    torch.testing.assert_close(Case(two, one.traversals).run("triton")["y"][1:], one.run("triton")["y"])


@pytest.mark.parametrize("shape", [(2, 0, 20), (0, 5, 20), (2, 5, 0)])
def test_nothing_in_nothing_out(shape: tuple[int, int, int]) -> None:
    batch, tokens, channels = shape
    case = random_case(tokens, both_ways(tokens), batch=batch, channels=channels)
    results = case.to(torch.float32).run("triton")
    assert results["y"].shape == shape and results["u"].shape == (batch, 2, tokens, channels)
    assert not results["A"].abs().sum()


def test_extreme_steps_stay_finite() -> None:
    case = random_case(12, both_ways(12), batch=1).to(torch.float32)
    delta = case.tensors["delta"]
    assert delta is not None
    delta = delta.clone()
    delta[:, :, ::5] = 1e4
    delta[:, :, 1::5] = -1e4
    check_against_reference(Case({**case.tensors, "delta": delta}, case.traversals), torch.float32, "triton")


def test_small_steps_keep_their_digits() -> None:
    """softplus(-12) is 6e-6: log(1 + e) in float32 would keep one digit of it."""
    case = random_case(6, both_ways(6), batch=1, absent=("delta_bias",)).to(torch.float32)
    delta = case.tensors["delta"]
    assert delta is not None
    check_against_reference(Case({**case.tensors, "delta": delta - 10}, case.traversals), torch.float32, "triton")


@pytest.mark.parametrize("segment_chunks", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_call_gives_the_same_bits_also_under_autocast(
    segment_chunks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, segment_chunks)
    # Lines of five steps are chunks of their own, so that two passes need no long walk.
    case = random_case(10, one_row_after_the_other(2, 5), channels=5, states=4).to(torch.float32)
    first = case.run("triton")
    with torch.autocast(device_of("triton").type, torch.bfloat16):
        second = case.run("triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def _call(case: Case) -> ScanCall:
    tensors = {n: placed(x, device_of("triton")) for n, x in case.tensors.items()}
    return ScanCall(**tensors, traversals=case.traversals, delta_softplus=case.delta_softplus, merge=case.merge)  # type: ignore[arg-type]


@pytest.mark.parametrize("segment_chunks", [None, 1])
def test_saved_states_are_those_of_the_contract(segment_chunks: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, segment_chunks)
    call = _call(
        random_case(CHUNK + 6, one_row_after_the_other(2, CHUNK // 2 + 3), batch=1, channels=4).to(torch.float32)
    )
    ours, theirs = (backend.forward(call, True)[1] for backend in (scan_triton, chunked))
    torch.testing.assert_close(ours, theirs)
    assert scan_triton.forward(replace(call, traversals=both_ways(CHUNK + 6)[:1]), False)[1].numel() == 0


def test_the_kernel_that_writes_the_walks_writes_their_words() -> None:
    from vision_ssm.ops.scan import triton_parts

    walks = (*cross(3, 5), *each_line(3, 5))
    table = torch.empty((len(walks), triton_parts.WORDS), dtype=torch.int32, device=device_of("triton"))
    for k, walk in enumerate(walks):
        triton_parts.fill_walk[(1,)](table, k, *triton_parts.walk_words(walk))
    assert table.tolist() == [triton_parts.walk_words(walk) for walk in walks]


def test_more_states_than_the_kernels_hold_are_refused() -> None:
    with pytest.raises(BackendError, match="up to 64 states per channel, and this scan has 65; name backend='chunked'"):
        random_case(2, both_ways(2), states=65).to(torch.float32).run("triton")


def test_the_reasons_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not float64" in str(gpu.why_not(device_of("triton"), torch.float64))
    monkeypatch.undo()
    assert "on cpu, the kernels run on GPUs" in str(gpu.why_not(torch.device("cpu"), torch.float32))
    if not GPU:
        assert "no GPU" in str(gpu.why_not(torch.device("cuda"), torch.float32))


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert gpu.why_not(torch.device("cuda"), torch.float32) == "the package triton is not installed"


def test_the_package_never_runs_it_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("VISION_SSM_BACKEND", raising=False)
    status = next(status for status in explain() if status.name == "triton")
    assert not status.chosen and "the kernels run on GPUs" in status.reason
    with pytest.raises(BackendError, match="scan backend 'triton' cannot run: the tensors are on cpu"):
        random_case(3, both_ways(3)).to(torch.float32).run("triton") if not GPU else _on_cpu()


def _on_cpu() -> None:
    case = random_case(3, both_ways(3)).to(torch.float32)
    selective_scan(**case.tensors, traversals=case.traversals, backend="triton")  # type: ignore[arg-type]


def _shaped(batch: int, tokens: int, channels: int, directions: int = 1, states: int = 16) -> ScanCall:
    u, b = (torch.empty(batch, directions, tokens, last, device="meta") for last in (channels, states))
    a = torch.empty(directions, channels, states, device="meta")
    return ScanCall(u, u, a, b, b, None, None, None, (Traversal.sequence(tokens),) * directions, True, True)


def test_the_schedule_follows_the_shape() -> None:
    for backward in (False, True):
        for full in (_shaped(256, 197, 384, 2), _shaped(64, 1025, 768)):
            assert not plan(full, 132, backward=backward).two_pass
        long = plan(_shaped(1, 100_000, 384, 2), 132, backward=backward)
        assert long.two_pass
        assert long.segments * 2 * long.blocks >= WARPS_WANTED * 132
        assert (long.segments - 1) * long.segment_chunks < -(-100_000 // CHUNK) <= long.segments * long.segment_chunks
        assert not plan(_shaped(1, 7 * CHUNK, 384), 132, backward=backward).two_pass
    assert plan(_shaped(256, 197, 384, 2), 132, backward=True).groups < 12
    assert plan(_shaped(4096, 197, 384, 2), 132, backward=True).programs == WARPS_HELD * 132


@pytest.mark.parametrize(
    "asked",
    [
        ("cuda:90", "bf16"),
        pytest.param(("cuda:80", "fp16", "widest"), marks=pytest.mark.slow),
        pytest.param(("cuda:100", "fp32", "widest"), marks=pytest.mark.slow),
        pytest.param(("hip:gfx942", "bf16", "widest"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_the_kernels_compile_for_gpus(asked: tuple[str, ...], tmp_path: Path) -> None:
    """The interpreter takes what the compiler would not: types that change within a loop, for one."""
    script = Path(__file__).parents[1] / "compile_triton.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), *asked]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    *names, last = done.stdout.split()
    expected = {"fill_walk", "scan_segments", "link_segments", "sum_directions", "adjoint_ends", "scan_adjoint"}
    expected |= {"conv_tiles", "conv_adjoint", "add_norm_rows", "add_norm_adjoint", "attend", "attend_adjoint"}
    assert set(names) == expected and last == "scan_adjoint"


class _Mixer(nn.Module):
    """A scan as a network has it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 32 + 2 * 16)
        self.A = nn.Parameter(-torch.rand(2, 32, 16))

    def forward(self, x: Tensor) -> Tensor:
        delta, B, C = self.project(x)[:, None].split([32, 16, 16], -1)
        return selective_scan(x[:, None], delta, self.A, B, C, z=x, traversals=both_ways(x.shape[1]))


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles_as_one_graph_and_with_cuda_graphs(mode: str) -> None:
    model, x = _Mixer().cuda(), torch.randn(2, 700, 32, device="cuda")
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), model(x))


@needs_gpu
@pytest.mark.parametrize("tokens", [70, 1500])
def test_a_captured_graph_gives_the_same(tokens: int) -> None:
    model, x = _Mixer().cuda().requires_grad_(False), torch.randn(1, tokens, 32, device="cuda")
    expected = model(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = model(x)
    found.zero_()
    graph.replay()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_without_nan(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = _Mixer().cuda()
    optimiser, scaler = (
        torch.optim.AdamW(model.parameters(), 1e-2),
        torch.amp.GradScaler(enabled=dtype == torch.float16),
    )
    x = torch.randn(4, 600, 32, device="cuda")
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", dtype):
            loss = (model(x).float() - x.roll(1, 1)).square().mean()
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(float(loss))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert losses[-1] < losses[0]
