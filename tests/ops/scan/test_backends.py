"""Every backend against the float64 reference, outputs and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.ops.scan.cases import (
    FLOORS,
    Case,
    atrous,
    both_ways,
    check_against_reference,
    cross,
    device_of,
    each_line,
    needs_gpu,
    needs_kernel,
    random_case,
    relative_error,
    use_instruction_set,
)
from vision_ssm.errors import BackendError
from vision_ssm.ops import Traversal, dispatch, selective_scan
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


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 197, 1000])
def test_sequence_lengths(backend: str, tokens: int) -> None:
    check_against_reference(random_case(tokens, both_ways(tokens), batch=1), torch.float32, backend)


@pytest.mark.parametrize(
    "decay", [1e-5, *(pytest.param(decay, marks=pytest.mark.slow) for decay in (1e-4, 1e-3)), 1e-2]
)
def test_long_memory_adds_up_no_more_error_than_plain_operations(backend: str, decay: float) -> None:
    """Constant steps round the same way every time: an error of one decay counts as often as the state remembers."""
    found = constant_steps(backend, torch.float32, decay)
    plain, exact = (reference_of_constant_steps(dtype, decay) for dtype in (torch.float32, torch.float64))
    for mine, simple, true in zip(found, plain, exact, strict=True):
        assert relative_error(mine, true) <= 2 * relative_error(simple, true) + FLOORS[torch.float32]


def constant_steps(name: str, dtype: torch.dtype, decay: float) -> list[Tensor]:
    """The result of a long sequence of equal steps, and the gradients of u, delta, A, B and C."""
    generator = torch.Generator().manual_seed(0)
    one, states = torch.ones(1, 1, 4096, 32), torch.ones(1, 1, 4096, 16)
    rates = -(0.5 + torch.rand(1, 32, 16, generator=generator)) * decay
    inputs = [x.to(dtype).requires_grad_() for x in (one, one.clone(), rates, states, states.clone())]
    y = selective_scan(*inputs, delta_softplus=False, backend=name)
    return [y.detach(), *torch.autograd.grad(y.sum(), inputs)]


@cache
def reference_of_constant_steps(dtype: torch.dtype, decay: float) -> list[Tensor]:
    return constant_steps("reference", dtype, decay)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    reason = dispatch.Backend("scan", backend).why_not(device_of(backend), dtype)
    if reason is not None:
        with pytest.raises(BackendError, match=r"computes float32.* and .*float16, not float"):
            random_case(5, both_ways(5)).to(dtype).run(backend)
        return
    check_against_reference(random_case(130, both_ways(130)), dtype, backend)


@pytest.mark.parametrize("states", [1, 2, 3, 8, 16, 21, 64])
def test_numbers_of_states(backend: str, states: int) -> None:
    check_against_reference(random_case(70, both_ways(70), channels=18, states=states), torch.float32, backend)


@pytest.mark.parametrize("channels", [1, 7, 8, 15, 16, 17, 48])
def test_numbers_of_channels(backend: str, channels: int) -> None:
    check_against_reference(random_case(67, both_ways(67), channels=channels), torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("walks", [cross, atrous, each_line])
@pytest.mark.parametrize("shared", [(), ("u",), ("u", "delta", "B", "C")])
@pytest.mark.parametrize("merge", [True, False])
def test_maps(backend: str, walks: object, shared: tuple[str, ...], merge: bool, dtype: torch.dtype) -> None:
    case = random_case(9 * 11, walks(9, 11), shared=shared, merge=merge, channels=19, states=5)  # type: ignore[operator]
    check_against_reference(case, dtype, backend)


@pytest.mark.parametrize(("height", "width"), [(2, 130), (130, 2)])
def test_lines_of_several_chunks(backend: str, height: int, width: int) -> None:
    check_against_reference(random_case(260, each_line(height, width), batch=1), torch.float32, backend)


def test_walks_that_share_out_the_tokens_but_write_elsewhere(backend: str) -> None:
    halves = Traversal(0, 50, 1, 0, 50), Traversal(50, 50, 1, 0, 50)
    same_place = (halves[0], halves[1].written_as(halves[0]))
    swapped = (halves[0].written_as(halves[1]), halves[1].written_as(halves[0]))
    for walks in (same_place, swapped):
        for shared in ((), ("u", "delta", "B", "C")):
            check_against_reference(random_case(100, walks, shared=shared), torch.float32, backend)


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_missing_options(backend: str, absent: tuple[str, ...], delta_softplus: bool) -> None:
    case = random_case(80, both_ways(80), absent=absent, delta_softplus=delta_softplus)
    check_against_reference(case, torch.float32, backend)


def test_walks_of_different_length_and_unvisited_tokens(backend: str) -> None:
    walks = (Traversal.sequence(100), Traversal(10, 40, 2, 0, 40), Traversal(0, 1, 1, 0, 0))
    check_against_reference(random_case(100, walks), torch.float32, backend)
    alone = random_case(100, walks[1:2], absent=("z",)).to(torch.float32)
    assert alone.run(backend)["y"][:, :10].abs().max() == 0


def test_strided_inputs(backend: str) -> None:
    case = random_case(75, both_ways(75)).to(torch.float32)
    expected = case.run(backend)
    strided = {}
    for name, x in case.tensors.items():
        if x is not None:
            wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
            every_other = wide[..., ::2] if name in ("u", "A") else wide[..., : x.shape[-1]]
            strided[name] = every_other.copy_(x)
    found = Case(strided, case.traversals).run(backend)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_expanded_inputs_equal_copies(backend: str) -> None:
    case = random_case(70, both_ways(70)).to(torch.float32)
    expanded = {
        n: x[:1].expand(2, *x.shape[1:]) if x is not None and x.shape[0] == 2 else x for n, x in case.tensors.items()
    }
    copied = {n: None if x is None else x.clone() for n, x in expanded.items()}
    first, second = (Case(tensors, case.traversals).run(backend)["y"] for tensors in (expanded, copied))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)])
def test_nothing_in_nothing_out(backend: str, shape: tuple[int, int]) -> None:
    batch, tokens = shape
    results = random_case(tokens, both_ways(tokens), batch=batch).to(torch.float32).run(backend)
    assert results["y"].shape == (batch, tokens, 20)
    assert results["A"].abs().max() == 0 and results["u"].shape == (batch, 2, tokens, 20)


def test_extreme_steps_stay_finite(backend: str) -> None:
    case = random_case(130, both_ways(130)).to(torch.float32)
    delta = case.tensors["delta"]
    assert delta is not None
    delta = delta.clone()
    delta[:, :, ::7] = 1e4
    delta[:, :, 1::7] = -1e4
    check_against_reference(Case({**case.tensors, "delta": delta}, case.traversals), torch.float32, backend)


def test_autocast_does_not_reach_the_state(backend: str) -> None:
    case = random_case(130, both_ways(130)).to(torch.float32)
    expected = case.run(backend)
    with torch.autocast(device_of(backend).type, torch.bfloat16):
        found = case.run(backend)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_same_call_twice_gives_the_same_bits(backend: str) -> None:
    case = random_case(197, both_ways(197), channels=200).to(torch.float32)
    first, second = case.run(backend), case.run(backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_kernel
def test_output_bits_do_not_depend_on_the_thread_count() -> None:
    case = random_case(197, both_ways(197), channels=200).to(torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = case.run("cpu")
        torch.set_num_threads(3)
        three = case.run("cpu")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one[name], three[name]) for name in ("y", "u", "delta", "z"))
    assert all(torch.allclose(one[name], three[name], rtol=1e-5, atol=1e-5) for name in one)
