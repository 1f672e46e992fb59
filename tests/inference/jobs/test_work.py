"""The results of every task fit the columns of their tables."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa

from tests.tasks.detection.test_results import nothing, result
from tests.tasks.segmentation.test_results import segments
from vision_ssm.inference.jobs.work import Work, schema_of
from vision_ssm.tasks.outlines import run_lengths
from vision_ssm.tasks.registry import find_task


def test_cells_come_back_as_they_were():
    map_ = segments([[1, 1, 1, 0], [255, 3, 255, 255]], 0.75)
    for task, results in {"detection": [result(masks=True), result(), nothing()], "segmentation": [map_]}.items():
        rows = [one.cells() for one in results]
        table = pa.Table.from_pylist([*rows, {}], schema=schema_of(find_task(task).columns))
        *back, empty = table.to_pylist()
        assert set(empty.values()) == {None}
        assert [without_nulls(row) for row in back] == [rounded(row) for row in rows]


def test_a_segmentor_gives_masks():
    cells = segments([[1, 1, 1, 0], [255, 3, 255, 255]]).cells()
    masks = {entry["class"]: run_lengths(entry["counts"], 2, 4) for entry in cells["classes"]}
    assert np.array_equal(masks["road"], [[1, 1, 1, 0], [0, 0, 0, 0]])
    assert np.array_equal(masks["tree"], [[0, 0, 0, 0], [0, 1, 0, 0]])


def test_what_changes_the_rows_is_told(weights):
    def about(**options):
        return Work("predict", str(weights), options=options).open("cpu").about()

    assert about(batch_size=2) == about(batch_size=3)
    assert about(img_size=8) != about(img_size=16)


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def rounded(value):
    """Numbers as tables keep them."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(np.float32(value)) if isinstance(value, float) else value
