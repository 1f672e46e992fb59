"""`vision-ssm evaluate`: scores on a split, per class, and as JSON."""

from __future__ import annotations

import json

import vision_ssm
from tests.cli.commands import write_images


def test_scores_of_easy_images(run, trained, images):
    outcome = run("evaluate", trained / "best.safetensors", images)
    assert outcome.code == 0, outcome.err
    assert "top-1" in outcome.out
    assert "100.00 %" in outcome.out
    for name in ("dark", "light"):
        assert name in outcome.out
    assert "note: evaluated 6 of 24 images, those held out of training: 6 images of 2 classes (dark 3," in outcome.err


def test_new_images_are_all_scored(run, trained, tmp_path):
    new = write_images(tmp_path / "new", count=5)
    outcome = run("evaluate", trained / "best.safetensors", new)
    assert "note: evaluated 10 images of 2 classes" in outcome.err
    assert f"{trained / 'best.safetensors'} on {new} (all)" in outcome.out
    outcome = run("evaluate", trained / "best.safetensors", new, "--split", "test")
    assert outcome.code == 2
    assert "has no part called test" in outcome.err
    outcome = run("evaluate", trained / "best.safetensors", new, "--val-fraction", "0.4", "--json")
    assert [json.loads(outcome.out)[key] for key in ("split", "count", "of")] == ["val", 4, 10]


def test_json_equals_the_python_call(run, trained, images, tmp_path):
    output = tmp_path / "scores.json"
    outcome = run("evaluate", trained / "best.safetensors", images, "--split", "all", "--json", "--output", output)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    called = vision_ssm.evaluate(trained / "best.safetensors", images, "all")
    assert found == json.loads(output.read_text()) == json.loads(json.dumps(called.to_dict()))
    assert found["count"] == 24


def test_wrong_split(run, trained, images):
    outcome = run("evaluate", trained / "best.safetensors", images, "--split", "vall")
    assert outcome.code == 2
    assert "Did you mean 'val'?" in outcome.err


def test_classes_that_the_model_does_not_know(run, trained):
    outcome = run("evaluate", trained / "best.safetensors", "digits")
    assert outcome.code == 2
    assert "class" in outcome.err


def test_pictures_lie_where_they_were_asked_for(run, trained, images, tmp_path):
    outcome = run("evaluate", trained, images, "--pictures", tmp_path / "seen")
    assert outcome.code == 0, outcome.err
    for name in ("confusion", "predictions", "mistakes", "calibration"):
        assert f"drew {tmp_path / 'seen' / name}.png" in outcome.out
        assert (tmp_path / "seen" / f"{name}.png").is_file()
    (tmp_path / "file").touch()
    outcome = run("evaluate", trained, images, "--pictures", tmp_path / "file")
    assert outcome.code == 2
    assert "cannot write to output folder" in outcome.err
