"""`--shards` of predict and features."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vision_ssm.weights import opening

pq = pytest.importorskip("pyarrow.parquet")


def test_shards_of_predictions_and_what_remains_to_be_done(run, trained, images, tmp_path, monkeypatch):
    (tmp_path / "zero.png").write_bytes(b"")
    arguments = ["predict", trained, images, tmp_path / "zero.png", "--shards", tmp_path / "out", "--workers", "1"]
    outcome = run(*arguments, "--shard-rows", "16", "--top-k", "1")
    assert outcome.code == 1, outcome.err
    assert f"25 images in 2 shards: {tmp_path / 'out'}" in outcome.out
    assert "1 of 25 could not be used:" in outcome.err
    assert "zero.png" in outcome.err
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["path", "error", "classes"]
    assert table.num_rows == 25
    files_by_the_snippet(tmp_path, monkeypatch)
    opened = []
    load = opening.load_weights
    monkeypatch.setattr(opening, "load_weights", lambda *given: opened.append(given) or load(*given))
    again = run(*arguments, "--shard-rows", "16", "--top-k", "1", "--json")
    assert len(opened) == 1
    assert again.code == 1
    assert {**json.loads(again.out), "failures": 1, "folder": "", "weights": ""} == {
        **{"images": 25, "shards": 2, "resumed": 2, "failures": 1},
        **{"folder": "", "weights": ""},
    }
    other = run(*arguments, "--shard-rows", "16")
    assert other.code == 2
    assert "holds shards of another job: top_k was 1 and is not given" in other.err


def files_by_the_snippet(tmp_path, monkeypatch):
    """What docs/many_images.md shows writes a file for each image that could be used."""
    page = Path(__file__).parents[2] / "docs" / "many_images.md"
    (snippet,) = re.findall(r"^```python\n(import json.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "found").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    written = [json.loads(path.read_text()) for path in (tmp_path / "answers").iterdir()]
    wanted = [row for row in pq.read_table(tmp_path / "out").to_pylist() if row["error"] is None]
    assert len(written) == len(wanted) == 24
    assert sorted(row["path"] for row in written) == sorted(row["path"] for row in wanted)


def test_what_does_not_go_together(run, trained, images, tmp_path):
    def refused(text, *arguments):
        outcome = run(*arguments)
        assert outcome.code == 2
        assert text in outcome.err

    shards = ("--shards", tmp_path / "out")
    refused(
        "--output does not go with --shards: shards take the place",
        "predict",
        trained,
        images,
        *shards,
        "--output",
        tmp_path / "a.json",
    )
    export = f"coco={tmp_path / 'a.json'}"
    refused(
        "--export does not go with --shards: files for other", "predict", trained, images, *shards, "--export", export
    )
    refused("--layers does not go with --shards", "features", trained, images, *shards, "--layers", "0")
    refused("--workers belongs to --shards DIR, which is not given", "predict", trained, images, "--workers", "2")
    refused("address 'auto' is that of a Ray cluster", "predict", trained, images, *shards, "--address", "auto")
    refused("not allowed with argument --output", "features", trained, images, "--output", tmp_path, *shards)
    assert not (tmp_path / "out").exists()
