"""A task that another package brings goes through every public command, and no line of `src` knows it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

HERE = Path(__file__).parent / "third_party"
SIZE = {"depth": 1, "embed_dim": 16, "patch_size": 4}
TINY = [f"--model.options.{name}={value}" for name, value in SIZE.items()] + ["--img-size", "8", "--workers", "0"]
LENGTH = ["--epochs", "4", "--batch-size", "8", "--lr", "0.01", "--run.checkpoint_minutes", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package's description, and images of one colour each."""
    folder = tmp_path_factory.mktemp("third party")
    package = folder / "site" / "mean_colour-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-colour\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vision_ssm.tasks]\nmean_colour = mean_colour_entry:TASK\n")
    (folder / "images").mkdir()
    for number, colour in enumerate(np.random.default_rng(0).integers(0, 256, (40, 3))):
        Image.new("RGB", (10, 12), tuple(map(int, colour))).save(folder / "images" / f"{number:02}.png")
    return folder


def command(place: Path, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(HERE), str(place / "site"), os.environ.get("PYTHONPATH", "")])
    code = "from vision_ssm.cli.main import entry_point; entry_point()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=place, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def output(place: Path, *arguments: str, code: int = 0) -> str:
    process = command(place, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return out + err


def training(name: str) -> list[str]:
    return ["train", "images", "--task", "mean_colour", "--colour.squared", "2", "--name", name, *TINY, *LENGTH]


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """The folder of a whole run."""
    told = output(place, *training("whole"))
    assert "mean error 0." in told
    return place / "runs" / "whole"


def test_losses_and_scores_are_logged_and_drawn_by_name(run: Path) -> None:
    steps = [event for event in log(run) if event["event"] == "step_done"]
    assert steps[0]["losses"].keys() == {"squared", "absolute"}
    assert steps[0]["loss"] == pytest.approx(sum(steps[0]["losses"].values()), rel=1e-5)
    epochs = [event for event in log(run) if event["event"] == "epoch_done"]
    errors = [event["scores"]["error"] for event in epochs]
    best = min(range(len(errors)), key=errors.__getitem__)
    finished = log(run)[-1]
    assert (finished["best_epoch"], finished["best_scores"]["error"]) == (best + 1, errors[best]), "less is better"
    assert errors[-1] < errors[0]
    with Image.open(run / "curve.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_killed_and_resumed_to_the_bit(place: Path, run: Path) -> None:
    process = command(place, *training("killed"))
    killed = place / "runs" / "killed"
    deadline = time.monotonic() + 60
    while not (killed / "last.ckpt").exists() or (killed / "log.jsonl").read_text().count("step_done") < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    output(place, "train", "--resume", "runs/killed")
    for name in ("best", "last"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (run, killed))
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)


def test_evaluate_says_the_scores_of_the_task(place: Path, run: Path) -> None:
    assert "mean error" in output(place, "evaluate", "runs/whole/best.safetensors", "images")
    found = json.loads(output(place, "evaluate", "runs/whole/best.safetensors", "images", "--json"))
    best = log(run)[-1]["best_scores"]
    assert (found["task"], found["count"]) == ("mean_colour", 8)
    assert found["error"] == pytest.approx(best["error"], rel=1e-5)


def test_predict_on_files(place: Path, run: Path) -> None:
    assert "green" in output(place, "predict", "runs/whole/best.safetensors", "images/00.png", "images/01.png")
    output(place, "predict", str(run / "best.safetensors"), "images", "--output", "found.csv", "--pictures", "drawn")
    with (place / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert rows[0].keys() == {"path", "red", "green", "blue", "error"}
    assert len(list((place / "drawn").glob("*.png"))) == 40


def test_an_option_of_another_task_is_refused(place: Path, run: Path) -> None:
    told = output(place, "predict", str(run / "best.safetensors"), "images/00.png", "--top-k", "2", code=2)
    assert "--top-k" in told and "mean_colour" in told


def test_reopened_in_python(place: Path, run: Path) -> None:
    code = (
        "import vision_ssm; loaded = vision_ssm.load_model('runs/whole/best.safetensors'); "
        "assert type(loaded.task()).__name__ == 'MeanColour'; "
        "print(vision_ssm.predict(loaded, 'images/00.png').results[0].rgb)"
    )
    path = os.pathsep.join([str(HERE), str(place / "site"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True
    )
    assert len(json.loads(done.stdout)) == 3
    process = subprocess.run(
        [sys.executable, "-c", "import vision_ssm; vision_ssm.load_model('runs/whole/best.safetensors')"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "of a task that is not installed: no task is called 'mean_colour'" in process.stderr


def test_its_settings_are_shown(place: Path) -> None:
    told = output(place, "train", "--task", "mean_colour", "--help")
    assert "--colour.squared" in told and "Weight of the squared error" in told
    assert "--augment.mixup" not in told
    told = output(place, "train", "images", "--task", "mean_colour", "--colour.squarde", "1", code=2)
    assert "--colour.squarde" in told and "--colour.squared" in told


def test_it_is_short_and_src_does_not_know_it() -> None:
    lines = sum(len(file.read_text().splitlines()) for file in HERE.glob("*.py"))
    assert lines <= 80
    import vision_ssm

    source = Path(vision_ssm.__path__[0])
    assert not any("mean_colour" in file.read_text() for file in source.rglob("*.py"))
