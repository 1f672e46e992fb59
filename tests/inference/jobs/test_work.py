"""The results of every task fit the columns of their tables."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from tests.inference.jobs.archives import write_pictures, write_table
from tests.tasks.detection.test_results import nothing, result
from tests.tasks.segmentation.test_results import segments
from vision_ssm.inference.jobs.plan import Piece
from vision_ssm.inference.jobs.references import list_references
from vision_ssm.inference.jobs.work import Work, located, schema_of
from vision_ssm.tasks.outlines import run_lengths
from vision_ssm.tasks.registry import find_task
from vision_ssm.weights.shipped import DEFAULT


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


@pytest.mark.parametrize("left", [None, b"PAR1", b"PAR1 no footer PAR1"])
def test_images_of_a_table_that_is_no_more_are_rows(weights, tmp_path, left):
    files = write_pictures(tmp_path / "in", 4)
    table = write_table(tmp_path / "t.parquet", "content", [file.read_bytes() for file in files])
    references = list_references([table], [])
    table.unlink()
    if left is not None:
        table.write_bytes(left)
    content = Work("predict", str(weights)).open("cpu").content(Piece(0, tuple(references)))
    errors = pq.read_table(io.BytesIO(content)).column("error").to_pylist()
    assert len(errors) == 4
    assert all("t.parquet" in error for error in errors)


def test_weights_are_named_as_workers_find_them(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located(weights.name, None) == located(weights, "vim_nano") == str(weights)
    (tmp_path / DEFAULT).mkdir()
    assert located(DEFAULT, None) == DEFAULT  # a name goes before a file
    assert located(DEFAULT, "vim_nano") == str(tmp_path / DEFAULT)
    assert located("vim_tiny_patch16_224", None) == "vim_tiny_patch16_224"


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
