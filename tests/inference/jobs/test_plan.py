"""A plan is a function of its inputs alone, and is refused where they have changed."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

pytest.importorskip("pyarrow")

from tests.inference.jobs.archives import write_pictures
from vision_ssm.errors import ConfigError, DataError
from vision_ssm.inference.jobs import plan as plans
from vision_ssm.inference.jobs.evaluation import ScoreBench
from vision_ssm.inference.jobs.plan import ABOUT, Piece, plan_of
from vision_ssm.inference.jobs.references import list_references


def test_every_image_is_in_one_piece_in_order(tmp_path):
    files = write_pictures(tmp_path / "in", 7)
    references = list_references([tmp_path / "in"], [])
    plan = plan_of(references, 3)
    assert [len(piece.references) for piece in plan.pieces] == [3, 3, 1]
    assert [reference.name for piece in plan.pieces for reference in piece.references] == [str(file) for file in files]
    assert plan == plan_of(list_references([tmp_path / "in"], []), 3)
    plan.file(tmp_path, plan.pieces[1]).touch()
    assert [piece.number for piece in plan.missing(tmp_path)] == [0, 2]
    with pytest.raises(ConfigError, match="at least one row, got shard_rows=0"):
        plan_of(references, 0)


def test_addresses_are_not_asked_for_their_state(monkeypatch):
    asked = []
    monkeypatch.setattr(plans, "state_of", asked.append)
    sample = SimpleNamespace(samples=SimpleNamespace(paths=("memory://packed/a.tar/0.png", "packed/a.tar/1.png")))
    references = ScoreBench(None, sample).references()
    plan_of(references, 1)
    assert asked == ["packed/a.tar/1.png"]
    pieces = [Piece(0, tuple(references)).located().references]
    assert [one.place for one in pieces[0]] == ["memory://packed/a.tar/0.png", os.path.abspath("packed/a.tar/1.png")]
    assert [one.name for one in pieces[0]] == [one.name for one in references]


def test_what_has_changed_is_refused_and_named(tmp_path):
    files = write_pictures(tmp_path / "in", 4)
    out = tmp_path / "out"

    def begin(rows=2, **work):
        plan_of(list_references([tmp_path / "in"], []), rows).begin(out, {"command": "predict", **work})

    begin(top_k=3)
    begin(top_k=3)
    with pytest.raises(DataError, match="of another job: top_k was 3 and is 5"):
        begin(top_k=5)
    with pytest.raises(DataError, match="top_k was 3 and is not given"):
        begin()
    with pytest.raises(DataError, match="cut into 2 shards and are into 4"):
        begin(1, top_k=3)
    os.utime(files[0], (1, 1))
    with pytest.raises(DataError, match="the images have changed: others, in another order, or files written anew"):
        begin(top_k=3)
    files[0].unlink()
    with pytest.raises(DataError, match="there were 4 images and are 3"):
        begin(top_k=3)
    (out / ABOUT).write_text("[]")
    with pytest.raises(DataError, match=r"cannot read .*_job.json"):
        begin(top_k=3)
    (out / ABOUT).unlink()
    (out / "part-00000-of-00002.parquet").touch()
    with pytest.raises(DataError, match=r"holds shards and no _job.json"):
        begin(top_k=3)
