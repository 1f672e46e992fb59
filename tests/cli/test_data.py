"""`vision-ssm data pack`, and what is trained on what it wrote."""

from __future__ import annotations

import json

from safetensors.torch import load_file

from tests.cli.commands import TINY


def test_training_on_shards_is_that_on_the_folder(run, images, tmp_path):
    packed = tmp_path / "packed"
    outcome = run("data", "pack", images, "--shards", packed)
    assert outcome.code == 0, outcome.err
    assert f"packed for classification: 20 train, 4 val images in {packed}" in outcome.out
    weights = {}
    for name, data in {"folder": images, "shards": packed}.items():
        trained = run("train", data, "--output", tmp_path, "--name", name, "--epochs", "1", "--lr", "0.01", *TINY)
        assert trained.code == 0, trained.err
        weights[name] = load_file(tmp_path / name / "last.safetensors")
    assert all(bool((weights["folder"][key] == weights["shards"][key]).all()) for key in weights["folder"])
    scores = []
    for data in (images, packed):
        outcome = run("evaluate", tmp_path / "folder", data, "--json")
        assert outcome.code == 0, outcome.err
        scores.append(json.loads(outcome.out))
    assert (scores[0]["split"], scores[0]["count"]) == ("val", 4)
    cut = {"mistakes": [], "of": None}  # the files have other names, and nothing is cut off
    assert {**scores[0], **cut} == {**scores[1], **cut}


def test_tar_files_of_others(run, images, tmp_path):
    """Those that pack wrote, without its lists."""
    packed = tmp_path / "packed"
    run("data", "pack", images, "--shards", packed)
    for listed in packed.glob("*.json"):
        listed.unlink()
    (tmp_path / "classes.txt").write_text("\n".join(sorted(path.name for path in images.iterdir())))
    outcome = run("data", "index", packed, "--classes", tmp_path / "classes.txt")
    assert outcome.code == 0, outcome.err
    assert f"indexed for classification: 20 train, 4 val images in {packed}" in outcome.out
    trained = run("train", packed, "--output", tmp_path, "--name", "again", "--epochs", "1", *TINY)
    assert trained.code == 0, trained.err
    scored = run("evaluate", tmp_path / "again", images, "--json")
    assert json.loads(scored.out)["count"] == 24


def test_wrong_use(run, images, tmp_path):
    assert "pack needs a folder to write to: --shards DIR" in run("data", "pack", images).err
    assert "index writes beside tar files" in run("data", "index", images, "--shards", tmp_path).err
    assert "--classes names what index finds" in run("data", "check", images, "--classes", tmp_path).err
    assert "a check writes nothing" in run("data", "check", images, "--shards", tmp_path).err
