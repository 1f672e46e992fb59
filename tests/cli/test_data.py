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


def test_wrong_use(run, images, tmp_path):
    assert "pack needs a folder to write to: --shards DIR" in run("data", "pack", images).err
    assert "a check writes nothing" in run("data", "check", images, "--shards", tmp_path).err
