"""Every backend against the float64 reference, outputs and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.ops.gla.cases import Case, check_against_reference, random_case
from tests.ops.scan.cases import (
    atrous,
    both_ways,
    cross,
    device_of,
    each_line,
    needs_gpu,
    needs_kernel,
    use_instruction_set,
)
from vision_ssm.errors import BackendError
from vision_ssm.ops import Traversal, dispatch
from vision_ssm.ops.native import INSTRUCTION_SETS


@pytest.fixture(
    params=["chunked", *(f"cpu-{name}" for name in INSTRUCTION_SETS), pytest.param("triton", marks=needs_gpu)]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each backend, the CPU's kernel once per instruction set; test_triton.py does without a GPU."""
    name, _, instruction_set = request.param.partition("-")
    if instruction_set:
        use_instruction_set(monkeypatch, instruction_set)
    yield name


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 197])
def test_sequence_lengths(backend: str, tokens: int) -> None:
    check_against_reference(random_case(tokens, both_ways(tokens), batch=1), torch.float32, backend)


def test_a_long_sequence_of_the_published_shape(backend: str) -> None:
    case = random_case(1000, both_ways(1000), batch=1, heads=1, keys=32, values=64)
    check_against_reference(case, torch.float32, backend)


def test_one_walk_over_a_map_as_denoisers_take_it(backend: str) -> None:
    walks = (Traversal.columns(16, 16, reverse=True),)
    check_against_reference(random_case(256, walks, batch=1, heads=6, keys=32, values=64), torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    reason = dispatch.Backend("gla", backend).why_not(device_of(backend), dtype)
    if reason is not None:
        with pytest.raises(BackendError, match=r"computes float32.* and .*float16, not float"):
            random_case(5, both_ways(5)).to(dtype).run(backend)
        return
    check_against_reference(random_case(130, both_ways(130)), dtype, backend)


@pytest.mark.parametrize(
    ("heads", "keys", "values"), [(1, 1, 1), (3, 7, 5), (1, 16, 32), (2, 33, 9), (2, 5, 70), (24, 4, 8)]
)
def test_shapes_of_heads(backend: str, heads: int, keys: int, values: int) -> None:
    case = random_case(70, both_ways(70), heads=heads, keys=keys, values=values)
    check_against_reference(case, torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("walks", [cross, atrous, each_line])
@pytest.mark.parametrize("merge", [True, False])
def test_maps(backend: str, walks: object, merge: bool, dtype: torch.dtype) -> None:
    case = random_case(7 * 11, walks(7, 11), merge=merge, keys=5, values=9)  # type: ignore[operator]
    check_against_reference(case, dtype, backend)


@pytest.mark.parametrize(("height", "width"), [(2, 130), (130, 2)])
def test_lines_of_several_chunks(backend: str, height: int, width: int) -> None:
    check_against_reference(random_case(260, each_line(height, width), batch=1), torch.float32, backend)


def test_walks_of_different_length_and_unvisited_tokens(backend: str) -> None:
    walks = (Traversal.sequence(100), Traversal(10, 40, 2, 0, 40), Traversal(0, 1, 1, 0, 0))
    check_against_reference(random_case(100, walks), torch.float32, backend)
    alone = random_case(100, walks[1:2]).to(torch.float32)
    assert alone.run(backend)["y"][:, :10].abs().max() == 0


def test_walks_that_write_elsewhere(backend: str) -> None:
    halves = Traversal(0, 50, 1, 0, 50), Traversal(50, 50, 1, 0, 50)
    for walks in ((halves[0], halves[1].written_as(halves[0])), (halves[0].written_as(halves[1]), halves[1])):
        check_against_reference(random_case(100, walks), torch.float32, backend)


def test_strided_inputs(backend: str) -> None:
    case = random_case(75, both_ways(75)).to(torch.float32)
    expected = case.run(backend)
    strided = []
    for at, x in enumerate(case.tensors):
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
        strided.append((wide[..., ::2] if at == 0 else wide[..., : x.shape[-1]]).copy_(x))
    # As a projection of both directions leaves them: [B, L, K, H N].
    strided[3] = case.tensors[3].transpose(1, 2).contiguous().transpose(1, 2)
    found = Case(tuple(strided), case.heads, case.traversals).run(backend)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)])
def test_nothing_in_nothing_out(backend: str, shape: tuple[int, int]) -> None:
    batch, tokens = shape
    results = random_case(tokens, both_ways(tokens), batch=batch).to(torch.float32).run(backend)
    assert results["y"].shape == (batch, tokens, 24)
    assert results["log_gates"].shape == (batch, 2, tokens, 16)


def gated(case: Case, gates: Tensor) -> Case:
    return Case((*case.tensors[:3], gates), case.heads, case.traversals, case.merge)


@pytest.mark.parametrize("least", [-1e-6, -1.0, -1e4, -1e30])
def test_gates_of_every_size_side_by_side(backend: str, least: float) -> None:
    """The strong gates of some steps leave the digits of their neighbours' alone, and nothing overflows."""
    case = random_case(130, both_ways(130))
    gates = case.tensors[3].clone()
    gates[:, :, ::7] *= 1e-4
    gates[:, :, 3::9] = least
    check_against_reference(gated(case, gates), torch.float32, backend)


def test_a_closed_gate_forgets_everything(backend: str) -> None:
    case = random_case(130, both_ways(130)).to(torch.float32)
    closed = gated(case, torch.full_like(case.tensors[3], -torch.inf)).run(backend)
    q, k, v = (x.unflatten(-1, (case.heads, -1)) for x in case.tensors[:3])
    alone = 2 * 8**-0.5 * (q * k).sum(-1, keepdim=True) * v  # from either side
    torch.testing.assert_close(closed["y"], alone.flatten(-2))
    assert all(torch.isfinite(x).all() for x in closed.values())
    assert closed["log_gates"].abs().max() == 0


@pytest.mark.parametrize("gate", [-1e-5, -1e-3])
def test_long_memory_adds_up_no_more_error_than_plain_operations(backend: str, gate: float) -> None:
    """Constant steps round the same way every time."""
    one = torch.ones(1, 1024, 8, dtype=torch.float64)
    case = Case((one, one, one, torch.full((1, 1, 1024, 8), gate, dtype=torch.float64)), 1, both_ways(1024)[:1])
    check_against_reference(case, torch.float32, backend)


def test_autocast_does_not_reach_the_state(backend: str) -> None:
    case = random_case(130, both_ways(130)).to(torch.float32)
    expected = case.run(backend)
    with torch.autocast(device_of(backend).type, torch.bfloat16):
        found = case.run(backend)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@needs_kernel
def test_the_kernel_s_bits_depend_on_no_thread_and_no_repetition() -> None:
    case = random_case(197, both_ways(197), heads=3, keys=8, values=40).to(torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            results.append(case.run("cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)
