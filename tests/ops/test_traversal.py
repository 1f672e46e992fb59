from __future__ import annotations

import pytest
import torch

from tests.ops.scan.cases import atrous, cross
from vision_ssm.errors import ShapeError
from vision_ssm.ops import Traversal
from vision_ssm.ops.traversal import check_within, flatten, unflatten

SIZES = [(1, 1), (1, 7), (5, 1), (4, 6), (3, 5)]


def visited(walk: Traversal) -> list[int]:
    return [walk.token(step) for step in range(walk.length)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cross_visits_rows_and_columns_both_ways(height: int, width: int) -> None:
    grid = torch.arange(height * width).view(height, width)
    rows, columns = grid.flatten().tolist(), grid.T.flatten().tolist()
    assert [visited(walk) for walk in cross(height, width)] == [rows, columns, rows[::-1], columns[::-1]]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_subgrids_visit_every_token_once(height: int, width: int, step: int) -> None:
    walks = [
        Traversal.subgrid(height, width, step=step, row=r, column=c, column_major=bool((r + c) % 2))
        for r in range(step)
        for c in range(step)
    ]
    check_within(walks, height * width)
    assert sorted(token for walk in walks for token in visited(walk)) == list(range(height * width))


def test_atrous_order_is_the_published_one() -> None:
    # EfficientVMamba's example: a 4 x 6 map whose value is 10 * row + column.
    values = [10 * row + column for row in range(4) for column in range(6)]
    assert [[values[token] for token in visited(walk)] for walk in atrous(4, 6)] == [
        [0, 2, 4, 20, 22, 24],
        [10, 30, 12, 32, 14, 34],
        [1, 3, 5, 21, 23, 25],
        [11, 31, 13, 33, 15, 35],
    ]


def test_flat_form_round_trips() -> None:
    walks = list(cross(3, 5)) + list(atrous(4, 6))
    assert unflatten(flatten(walks)) == walks


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        (Traversal(0, 7, 1, 0, 7), "visits tokens 0..6, but the tensors hold tokens 0..5"),
        (Traversal(2, 6, -1, 0, 6), "visits tokens -3..2"),
        (Traversal(0, 2, 1, 3, 5), "visits tokens 0..6"),
        (Traversal(0, 3, 1, 2, 6), "visits some token twice"),
        (Traversal(0, 2, 0, 1, 2), "visits some token twice"),
        (Traversal(0, 0, 1, 0, 3), "inner_count >= 1"),
        (Traversal(0, 1, 1, 1, -1), "length >= 0"),
    ],
)
def test_bad_walks_are_refused(walk: Traversal, message: str) -> None:
    with pytest.raises(ShapeError, match=message.replace("(", r"\(")):
        check_within([walk], 6)


def test_lines_visit_every_row_or_column_and_write_where_they_are_told() -> None:
    there, back = Traversal.each_row(2, 3), Traversal.each_row(2, 3, reverse=True)
    assert (visited(there), visited(back)) == ([0, 1, 2, 3, 4, 5], [2, 1, 0, 5, 4, 3])
    down, up = Traversal.each_column(2, 3), Traversal.each_column(2, 3, reverse=True)
    assert (visited(down), visited(up)) == ([0, 3, 1, 4, 2, 5], [3, 0, 4, 1, 5, 2])
    assert [step for step in range(6) if up.starts_anew(step)] == [0, 2, 4]
    assert visited(up.written_as(down)) == visited(up)
    assert visited(up.written_as(down).writes()) == visited(down)
    walks = [up.written_as(down), back, Traversal.each_row(0, 3)]
    assert unflatten(flatten(walks)) == walks


def test_outputs_cannot_be_written_along_a_walk_of_another_form() -> None:
    with pytest.raises(ShapeError, match="6 steps in runs of 3 and of 6 steps in runs of 2"):
        Traversal.each_row(2, 3).written_as(Traversal.each_column(2, 3))
    outside = Traversal.sequence(6).written_as(Traversal(1, 6, 1, 0, 6))
    with pytest.raises(ShapeError, match=r"visits tokens 1\.\.6"):
        check_within([outside], 6)


@pytest.mark.parametrize("bad", [{"step": 0, "row": 0, "column": 0}, {"step": 2, "row": 2, "column": 0}])
def test_bad_subgrids_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="subgrid needs step >= 1"):
        Traversal.subgrid(4, 4, **bad)
