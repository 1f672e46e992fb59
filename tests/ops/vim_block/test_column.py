"""Vim blocks one after the other in one call, against the blocks one by one; what it notices, and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.scan.cases import needs_kernel
from tests.ops.vim_block.cases import WAYS, cast, random_block, stream
from vision_ssm.ops import NormWeights, VimBlock, VimColumn, vim_block

pytestmark = needs_kernel


def blocks(way: str, count: int, **sizes: int) -> list[VimBlock]:
    widths = {"width": 24, "inner": 48, "states": 16} | sizes
    scales = (0.5, 1.0, 0.25)
    return [random_block(way, seed=i, scale=scales[i % 3], **widths) for i in range(count)]  # type: ignore[arg-type]


def one_by_one(x: Tensor, branches: list[VimBlock]) -> Tensor:
    for branch in branches:
        x = vim_block(x, branch)
    return x


def run(column: VimColumn, x: Tensor, count: int | None = None) -> Tensor | None:
    """The stream after the first ``count`` blocks, all if none is given."""
    segments = column.segments(x)
    return None if segments is None else segments(x, 0, len(column._blocks) if count is None else count)


def chosen(column: VimColumn, x: Tensor, rows: tuple[int, ...], norm: NormWeights) -> Tensor | None:
    segments = column.segments(x, norm)
    return None if segments is None else segments(x, 0, len(column._blocks), rows)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 40), (1, 300), (3, 33)])
def test_a_column_is_its_blocks(instruction_set: str, threads: int, way: str, batch: int, tokens: int) -> None:
    branches = blocks(way, 3)
    column, x = VimColumn(branches), stream(batch, tokens, 24)
    given = x.clone()
    with torch.no_grad():
        expected = one_by_one(x, branches)
        for _ in range(2):  # the second time, the blocks are known
            found = run(column, x)
            assert found is not None
            assert torch.equal(found, expected)
    assert torch.equal(x, given)


@pytest.mark.parametrize("way", WAYS)
def test_a_segment_is_its_blocks(instruction_set: str, way: str) -> None:
    blocks_of, x = blocks(way, 4), stream(2, 33, 24)
    with torch.no_grad():
        segments = VimColumn(blocks_of).segments(x)
        assert segments is not None
        for start, stop in ((0, 1), (1, 3), (3, 4), (0, 4), (2, 2)):
            given = x.clone()
            assert torch.equal(segments(given, start, stop), one_by_one(x, blocks_of[start:stop]))
            assert torch.equal(given, x)


def test_blocks_keep_their_own_norms() -> None:
    first, second = blocks("forward", 2)
    branches = [first, second._replace(norm=second.norm._replace(kind="layer", eps=0.5))]
    x = stream(1, 40, 24)
    with torch.no_grad():
        found = run(VimColumn(branches), x)
        assert found is not None
        assert torch.equal(found, one_by_one(x, branches))


@pytest.mark.parametrize("way", ["bidirectional", "shared"])
@pytest.mark.parametrize("tokens", [17, 40, 197, 300])
def test_two_threads_wait_for_each_other_through_many_blocks(way: str, tokens: int) -> None:
    """Neither may read what the other has yet to write, nor write what it has yet to read: blocks one by one know."""
    branches = blocks(way, 16)
    column, x = VimColumn(branches), stream(1, tokens, 24)
    with torch_threads(2), torch.no_grad():
        expected = one_by_one(x, branches)
        for _ in range(50):
            found = run(column, x)
            assert found is not None
            assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chosen_rows_are_normalised(instruction_set: str, kind: str, dtype: torch.dtype) -> None:
    branches = [cast(branch, dtype) for branch in blocks("bidirectional", 2, width=25)]
    weight, bias = (torch.randn(25).to(dtype) for _ in range(2))
    norm = NormWeights(kind, 1e-3, weight, bias if kind == "layer" else None)
    x = stream(2, 40, 25)
    with torch.no_grad():
        whole = run(VimColumn(branches), x)
        found = chosen(VimColumn(branches), x, (-1, 0, 7), norm)
        assert whole is not None and found is not None
        rows = whole[:, [39, 0, 7]].double()
        if kind == "rms":
            expected = F.rms_norm(rows, (25,), weight.double(), 1e-3)
        else:
            expected = F.layer_norm(rows, (25,), weight.double(), bias.double(), 1e-3)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_norms_that_do_not_fit_are_left_alone() -> None:
    column, x = VimColumn(blocks("forward", 2)), stream(1, 9, 24)
    with torch.no_grad():
        assert chosen(column, x, (0,), NormWeights("rms", 1e-5, torch.ones(24))) is not None
        assert chosen(column, x, (0,), NormWeights("rms", 1e-5, torch.ones(24).bfloat16())) is None
        assert chosen(column, x, (0,), NormWeights("rms", 1e-5, torch.ones(23))) is None
        assert chosen(column, x, (0,), NormWeights("batch", 1e-5, torch.ones(24))) is None


def double_in_place(weight: Tensor) -> None:
    weight.numpy()[:] *= 2  # no version counter knows


def double_elsewhere(weight: Tensor) -> None:
    weight.data = weight.clone() * 2


def turn_in_place(weight: Tensor) -> None:
    weight.t_()  # square: the same memory and shape


@pytest.mark.parametrize("change", [double_in_place, double_elsewhere, turn_in_place])
def test_a_column_sees_weights_changed_in_any_way(change: Callable[[Tensor], None]) -> None:
    branches = blocks("forward", 2, width=16, inner=16, states=2)
    column, x = VimColumn(branches), stream(1, 20, 16)
    with torch.no_grad():
        for at in (0, 1):
            before = run(column, x)
            change(branches[at].out_proj)
            for _ in range(2):
                found = run(column, x)
                assert before is not None and found is not None
                assert torch.equal(found, one_by_one(x, branches)) and not torch.allclose(found, before)


def test_a_column_stands_back_where_a_weight_no_longer_fits() -> None:
    branches = blocks("forward", 2, width=16, inner=32, states=2)
    column, x = VimColumn(branches), stream(1, 20, 16)
    with torch.no_grad():
        assert run(column, x) is not None
        weight = branches[1].out_proj
        memory = weight.detach()
        for other in (memory.view(32, 16), memory.view(torch.int32), memory.double()):
            weight.data = other
            assert run(column, x) is None
            weight.data = memory
            assert run(column, x) is not None


def test_a_column_takes_streams_of_many_lengths_and_autocast() -> None:
    branches = blocks("bidirectional", 2)
    column = VimColumn(branches)
    with torch.no_grad():
        for tokens in [*range(1, 40), 5]:
            for half in (False, True):
                x = stream(1, tokens, 24)
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    found = run(column, x)
                    assert found is not None
                    assert torch.equal(found, one_by_one(x, branches))


def test_a_column_stands_back_where_blocks_differ_or_gradients_are_wanted() -> None:
    def block(way: str = "forward", inner: int = 16, norm: str = "rms", gamma: bool = False) -> VimBlock:
        return random_block(way, width=16, inner=inner, states=2, norm=norm, gamma=gamma)

    x, first = stream(1, 20, 16), block()
    column = VimColumn([first, block()])
    assert run(column, x) is None  # gradients are enabled
    with torch.no_grad():
        assert run(column, x) is not None
        assert run(column, x.double()) is None
        assert run(column, stream(1, 20, 17)) is None
        assert run(column, x[0]) is None
        assert run(VimColumn([]), x) is None
        for other in (block("backward"), block(inner=32), block(norm="layer"), block(gamma=True)):
            assert run(VimColumn([first, other]), x) is None
            assert run(VimColumn([other, first]), x) is None
        half = cast(first, torch.bfloat16)
        assert run(VimColumn([first, half]), x) is None
