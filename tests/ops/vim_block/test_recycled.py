"""Memory that is lent comes back when the last tensor in it is gone, not before, and little of it lies idle."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.ops.scan.cases import needs_kernel
from tests.ops.vim_block.cases import WAYS, random_weights, stream
from vision_ssm.ops import Branch, residual_branch
from vision_ssm.ops.vim_block import cpu as cpu_block
from vision_ssm.ops.vim_block.recycled import Recycler


def test_memory_comes_back_when_nothing_in_it_is_left() -> None:
    recycler = Recycler(most_idle=2**20)
    whole = recycler.take(100)
    address, part = whole.data_ptr(), whole[10:20].view(2, 5)
    part.fill_(3.0)
    del whole
    gc.collect()
    assert recycler.idle_bytes() == 0
    assert recycler.take(100).data_ptr() != address
    assert part.eq(3.0).all()
    del part
    assert recycler.idle_bytes() == 800
    first, second = recycler.take(100), recycler.take(100)
    assert address in (first.data_ptr(), second.data_ptr())


def test_little_lies_idle() -> None:
    recycler = Recycler(most_idle=1000)
    lent = [recycler.take(100) for _ in range(4)]
    lent.clear()
    assert recycler.idle_bytes() == 800
    other = recycler.take(200)
    del other
    assert recycler.idle_bytes() == 800  # of the new size, the old one's made room
    large = recycler.take(10_000)
    del large
    assert recycler.idle_bytes() == 800
    assert recycler.take(0).shape == (0,)


@needs_kernel
@pytest.mark.parametrize("shape", [(0, 40, 24), (2, 0, 24)])
def test_an_empty_stream_is_trained_on(shape: tuple[int, ...]) -> None:
    weights = random_weights("bidirectional", width=24, inner=40, states=16)
    x = torch.zeros(shape).requires_grad_()
    y = residual_branch(x, Branch(weights, 0.5, *WAYS["bidirectional"]))
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@needs_kernel
def test_graphs_that_are_alive_share_nothing() -> None:
    """Two forward passes before either backward pass, and one backward pass twice."""
    weights = random_weights("bidirectional", width=24, inner=40, states=16)
    branch = Branch(weights, 0.5, *WAYS["bidirectional"])
    inputs = [(stream(2, 40, 24) * scale).requires_grad_() for scale in (1.0, -2.0, 0.5)]

    def alone(x: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(residual_branch(x, branch).square().sum(), x)[0]

    expected = [alone(x) for x in inputs]
    for _ in range(3):
        results = [residual_branch(x, branch).square().sum() for x in inputs]
        for x, result, wanted in reversed(list(zip(inputs, results, expected, strict=True))):
            for retained in (True, False):
                assert torch.equal(torch.autograd.grad(result, x, retain_graph=retained)[0], wanted)


@needs_kernel
def test_a_training_step_uses_the_memory_of_the_step_before() -> None:
    weights = random_weights("bidirectional", width=24, inner=40, states=16)
    branch = Branch(weights, 0.5, *WAYS["bidirectional"])
    x = stream(3, 37, 24).requires_grad_()
    gc.collect()
    residual_branch(x, branch).sum().backward()
    idle = cpu_block._recycler.idle_bytes()
    assert idle > 0
    y = residual_branch(x, branch).sum()
    assert cpu_block._recycler.idle_bytes() < idle
    y.backward()
    assert cpu_block._recycler.idle_bytes() == idle
