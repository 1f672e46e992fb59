"""Gradients of a Vim block in one call, against the float64 composition; what it keeps for them, and refuses."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.scan.cases import FLOORS, needs_kernel, relative_error
from tests.ops.vim_block.cases import (
    WAYS,
    cast,
    composed,
    multiplies_pairs,
    random_block,
    rounded,
    stream,
    tensors_of,
)
from vision_ssm.errors import BackendError
from vision_ssm.ops import VimBlock, vim_block, vim_block_applies
from vision_ssm.ops.native import denormals_flushed
from vision_ssm.ops.vim_block import cpu_training, op, reference

pytestmark = needs_kernel


def gradients(x: Tensor, block: VimBlock, how: Callable[..., Tensor] = vim_block, **options: Any) -> list[Tensor]:
    leaves = [x, *tensors_of(block)]
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.autocast("cpu", enabled=how is vim_block and torch.is_autocast_enabled("cpu")):
        y = how(x, block, **options)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((y * target.to(y.dtype)).sum(), leaves)
    return [y.detach(), *found]


def check_gradients(x: Tensor, block: VimBlock, backend: str = "reference") -> None:
    """Whether what in_proj yields is made again in the backward pass or kept, as of small images."""
    each = []
    for most_kept in (0, x.shape[1]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_training, "MOST_KEPT_TOKENS", most_kept)
            each.append(gradients(x.clone(), cast(block, torch.float32)))
    operand = {"operand": rounded} if torch.is_autocast_enabled("cpu") and multiplies_pairs() else {}
    plain = gradients(x.clone(), cast(block, torch.float32), composed, backend=backend, **operand)
    exact = gradients(x.double(), cast(block, torch.float64), reference.forward)
    for found in each:
        for mine, simple, true in zip(found, plain, exact, strict=True):
            assert mine.shape == true.shape
            assert relative_error(mine, true) <= 2 * relative_error(simple, true) + 10 * FLOORS[torch.float32]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(("batch", "tokens"), [(3, 1), (3, 33), (1, 70)])
def test_gradients_of_everything(threads: int, way: str, norm: str, batch: int, tokens: int) -> None:
    check_gradients(stream(batch, tokens, 24), random_block(way, width=24, inner=40, states=16, norm=norm))


@pytest.mark.parametrize(
    ("batch", "tokens", "sizes"),
    [
        (1, 2, {"inner": 1, "states": 1, "rank": 1, "taps": 1}),
        (2, 31, {"inner": 16, "states": 1, "rank": 16, "taps": 2}),
        (1, 32, {"inner": 17, "states": 7, "rank": 17, "taps": 3}),
        (5, 33, {"inner": 48, "states": 3, "rank": 3, "taps": 8}),
        (3, 64, {"inner": 64, "states": 16, "rank": 12, "taps": 4}),
        (1, 65, {"inner": 130, "states": 21, "rank": 40, "taps": 5}),
    ],
)
def test_gradients_at_awkward_sizes(
    instruction_set: str, threads: int, batch: int, tokens: int, sizes: dict[str, int]
) -> None:
    """Blocks and pairs of channels that are not full, images that threads cannot share evenly, tiles that end early."""
    check_gradients(stream(batch, tokens, 20), random_block("bidirectional", width=20, **sizes))


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "inner"),
    [
        pytest.param(1, 2, 1, 1, marks=pytest.mark.slow),
        (3, 70, 25, 41),
        pytest.param(1, 200, 40, 72, marks=pytest.mark.slow),
    ],
)
def test_gradients_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
    instruction_set: str,
    threads: int,
    batch: int,
    tokens: int,
    width: int,
    inner: int,
) -> None:
    """Rounding both sides of products in both directions, as plain operations under autocast would."""
    monkeypatch.setattr(op, "multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_block("bidirectional", width=width, inner=inner, states=5)
    with torch.autocast("cpu", torch.bfloat16):
        check_gradients(stream(batch, tokens, width), weights)


@pytest.mark.parametrize("way", ["bidirectional", pytest.param("shared", marks=pytest.mark.slow)])
def test_gradients_over_many_tiles(threads: int, way: str) -> None:
    """More tokens than threads that share an image take between two of their meetings, and the ones after the next."""
    weights = random_block(way, width=20, inner=260, states=3)
    check_gradients(stream(1, 1200, 20), weights, backend="chunked")


@pytest.mark.parametrize("looks", [(True, False), (False, False)])
def test_gradients_of_a_convolution_that_looks_ahead_of_its_walk(
    monkeypatch: pytest.MonkeyPatch, threads: int, looks: tuple[bool, bool]
) -> None:
    monkeypatch.setitem(WAYS, "ahead", ((False, True), looks))
    check_gradients(stream(2, 70, 24), random_block("ahead", width=24, inner=40, states=2))


@pytest.mark.parametrize(("batch", "tokens", "inner"), [(2, 70, 40), (5, 70, 40), (1, 1200, 260)])
def test_equal_calls_give_equal_gradients(threads: int, batch: int, tokens: int, inner: int) -> None:
    weights = random_block("bidirectional", width=24, inner=inner, states=16)
    runs = [gradients(stream(batch, tokens, 24), weights) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_frozen_weights_get_no_gradient_and_others_do() -> None:
    weights = random_block("bidirectional", width=24, inner=40, states=16)
    weights.out_proj.requires_grad_()
    y = vim_block(stream(1, 20, 24), weights)
    y.sum().backward()
    assert weights.out_proj.grad is not None
    assert weights.in_proj.grad is None


@pytest.mark.parametrize(("tokens", "units"), [(512, 9), (544, 5)])
def test_keeps_few_times_the_stream_and_the_projections_for_the_backward_pass(tokens: int, units: int) -> None:
    """In units of x: x itself, the scan's result 2, the states 2; what x_proj yields, once for each direction.

    And what in_proj yields, 4, of an image of up to 512 tokens.
    """
    width = 64
    weights = random_block("bidirectional", width=width, inner=2 * width, states=16)
    x = stream(1, tokens, width).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vim_block(x, weights)
    own = {w.untyped_storage().data_ptr() for w in tensors_of(weights)}
    projected = x.numel() // width * 2 * weights.ssm.x_proj_weight.shape[1] * x.itemsize
    assert sum(size for at, size in kept.items() if at not in own) == units * x.untyped_storage().size() + projected


def test_forward_mode_differentiation_is_not_lost() -> None:
    weights, x = random_block("forward", width=16, inner=16, states=2), stream(1, 9, 16)
    with torch.autograd.forward_ad.dual_level():
        assert not vim_block_applies(x, weights._replace(scale=1.0))


def test_a_backward_pass_under_autocast_is_computed_in_full() -> None:
    weights = random_block("bidirectional", width=24, inner=40, states=16)
    leaves = [w.requires_grad_() for w in tensors_of(weights)]
    y = vim_block(stream(1, 40, 24), weights)
    plain = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        under = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_gradients_do_not_follow_the_default_dtype(default: torch.dtype) -> None:
    weights, x = random_block("bidirectional", width=24, inner=40, states=16), stream(2, 40, 24)
    expected = gradients(x.clone(), weights)
    torch.set_default_dtype(default)
    try:
        found = gradients(x.clone(), weights)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_denormals_are_flushed_in_every_thread_and_only_for_the_time() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the flag is x86's")
    small = torch.full((1 << 20,), 1e-30)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with denormals_flushed():
            flushed = small * 1e-12
        kept = small * 1e-12
    finally:
        torch.set_num_threads(before)
    assert not flushed.count_nonzero()
    assert kept.count_nonzero() == len(kept)


def test_a_gradient_of_a_gradient_is_refused_rather_than_lost() -> None:
    weights, x = random_block("forward", width=16, inner=16, states=2), stream(1, 9, 16).requires_grad_()
    y = vim_block(x, weights._replace(scale=1.0))
    with pytest.raises(BackendError, match="differentiates a Vim block once"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_the_result_may_be_changed_in_place() -> None:
    weights, x = random_block("forward", width=16, inner=16, states=2), stream(1, 9, 16).requires_grad_()
    y = vim_block(x, weights._replace(scale=1.0))
    y += 1
    y.sum().backward()
    assert x.grad is not None
