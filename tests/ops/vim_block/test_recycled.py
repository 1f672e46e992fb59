"""Memory that is lent comes back when the last tensor in it is gone, not before, and little of it lies idle."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
import torch

from tests.ops.scan.cases import needs_kernel
from tests.ops.vim_block.cases import random_block, stream
from vision_ssm.ops import release_memory, vim_block
from vision_ssm.ops.vim_block.recycled import Recycler, recycler, scratch


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
    weights = random_block("bidirectional", width=24, inner=40, states=16)
    x = torch.zeros(shape).requires_grad_()
    y = vim_block(x, weights)
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@needs_kernel
def test_graphs_that_are_alive_share_nothing() -> None:
    """Two forward passes before either backward pass, and one backward pass twice."""
    weights = random_block("bidirectional", width=24, inner=40, states=16)
    inputs = [(stream(2, 40, 24) * scale).requires_grad_() for scale in (1.0, -2.0, 0.5)]

    def alone(x: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(vim_block(x, weights).square().sum(), x)[0]

    expected = [alone(x) for x in inputs]
    for _ in range(3):
        results = [vim_block(x, weights).square().sum() for x in inputs]
        for x, result, wanted in reversed(list(zip(inputs, results, expected, strict=True))):
            for retained in (True, False):
                assert torch.equal(torch.autograd.grad(result, x, retain_graph=retained)[0], wanted)


@needs_kernel
def test_a_training_step_uses_the_memory_of_the_step_before() -> None:
    weights = random_block("bidirectional", width=24, inner=40, states=16)
    x = stream(3, 37, 24).requires_grad_()
    gc.collect()
    recycler.release()  # with many sizes of other tests waiting, some of this step's would be dropped
    vim_block(x, weights).sum().backward()
    idle = recycler.idle_bytes()
    assert idle > 0
    y = vim_block(x, weights).sum()
    assert recycler.idle_bytes() < idle
    y.backward()
    assert recycler.idle_bytes() == idle


@needs_kernel
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_that_training_keeps_is_given_back_to_the_system() -> None:
    block = random_block("bidirectional", width=96, inner=192, states=16)
    x = stream(8, 2048, 96).requires_grad_()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    vim_block(x, block).sum().backward()
    gc.collect()
    kept = recycler.idle_bytes()
    assert kept > 2**24
    before = resident()
    freed = release_memory()
    assert freed > kept  # the scratch of this thread as well
    assert before - resident() > 0.8 * freed
    assert recycler.idle_bytes() == 0 and release_memory() == 0


@needs_kernel
def test_what_a_graph_needs_is_not_given_back() -> None:
    block, x = random_block("bidirectional", width=24, inner=40, states=16), stream(2, 40, 24).requires_grad_()
    expected = torch.autograd.grad(vim_block(x, block).square().sum(), x)[0]
    y = vim_block(x, block).square().sum()
    release_memory()
    filler = [torch.full((100_000,), 7.0) for _ in range(20)]
    assert torch.equal(torch.autograd.grad(y, x)[0], expected)
    del filler


@needs_kernel
def test_scratch_of_other_threads_is_given_back() -> None:
    release_memory()
    ready, go = threading.Event(), threading.Event()

    def work() -> None:
        scratch.take("normed", 1000)
        ready.set()
        go.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    assert release_memory() == 4000
    go.set()
    thread.join()
