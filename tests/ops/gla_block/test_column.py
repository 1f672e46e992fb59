"""Blocks of gated linear attention described once: what a column remembers, and when it looks again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.gla_block.cases import cast, draw_map, random_block
from tests.ops.mlp.test_mlp import needs_vectors
from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import GlaBlock, GlaColumn
from vision_ssm.ops.gla_block import cpu

pytestmark = needs_vectors


def blocks() -> list[GlaBlock]:
    """Of several forms."""
    return [random_block(16, 2, norm="layer"), random_block(16, 1, hidden=7, conv_act=False)]


def run(column: GlaColumn, x: Tensor) -> Tensor | None:
    with torch.no_grad():
        segments = column.segments(x)
        return None if segments is None else segments(x, 0, 2)


def one_by_one(of: list[GlaBlock], x: Tensor) -> Tensor:
    for block in of:
        x = cpu.forward(x, block)
    return x


def test_a_column_is_its_blocks_on_maps_of_any_size() -> None:
    of = blocks()
    column = GlaColumn(of, torch.float32)
    for shape in ((1, 3, 4, 16), (2, 7, 5, 16), (1, 3, 4, 16)):
        x = draw_map(*shape)
        found = run(column, x)
        assert found is not None
        assert torch.equal(found, one_by_one(of, x))
    with torch.no_grad():
        segments = column.segments(x)
        assert segments is not None
        assert torch.equal(segments(segments(x, 0, 1), 1, 2), found)
        assert torch.equal(segments(x, 1, 1), x)


def test_it_reads_the_weights_as_they_are() -> None:
    of, x = blocks(), draw_map(1, 3, 4, 16)
    column = GlaColumn(of, torch.float32)
    before = run(column, x)
    for change in (lambda w: w.mul_(2), lambda w: w.set_(3 * w), lambda w: w.set_(w.t().contiguous().t())):
        change(of[0].fc1.data)
        found = run(column, x)
        assert before is not None and found is not None
        assert torch.equal(found, one_by_one(of, x))
        before = found
    of[0].fc1.data = of[0].fc1[:, :15]
    assert run(column, x) is None


def test_it_stands_back_where_a_block_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: False)
    column, x = GlaColumn(blocks(), torch.float32), draw_map(1, 3, 4, 16)
    for _ in range(2):  # before it knows anything, and after
        assert column.segments(x) is None  # gradients are enabled
        assert run(column, x.bfloat16()) is None
        assert run(column, x[0]) is None
        assert run(column, x[:0]) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert run(column, x) is None
        assert run(column, x) is not None
    half = GlaColumn([cast(block, torch.bfloat16) for block in blocks()], torch.float32)
    assert run(half, x) is not None
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: True)
    assert run(half, x) is None


def test_what_happens_between_asking_and_running_is_told() -> None:
    of, x = blocks(), draw_map(1, 3, 4, 16)
    with torch.no_grad():
        segments = GlaColumn(of, torch.float32).segments(x)
        assert segments is not None
        with pytest.raises(BackendError, match=r"outside of torch\.func"):
            torch.func.vmap(lambda x: segments(x[None], 0, 2))(x)
        with pytest.raises(ShapeError, match=r"expects a map \[B, H, W, 16\], got \[1, 3, 4, 15\]"):
            segments(x[..., :15], 0, 2)
        of[1].conv.data = of[1].conv.clone()
        with pytest.raises(ShapeError, match="weights were replaced meanwhile"):
            segments(x, 0, 2)
