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

import vision_ssm
from vision_ssm.errors import CheckpointError

HERE = Path(__file__).parent / "third_party"
SIZE = {"depth": 1, "embed_dim": 16, "patch_size": 4}
WEIGHTS = "runs/whole/best.safetensors"
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


DRIVER = """
import contextlib, io, json, sys
from vision_ssm.cli.main import main
told = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    told.append((code or 0, out.getvalue()))
json.dump(told, sys.stdout)
"""


def process(place: Path) -> subprocess.Popen[str]:
    """A process that runs the command lines it is given, with the package on its path."""
    path = os.pathsep.join([str(HERE), str(place / "site"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=place, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def training(name: str) -> list[str]:
    return ["train", "images", "--task", "mean_colour", "--colour.squared", "2", "--name", name, *TINY, *LENGTH]


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


COMMANDS = {
    "train": training("whole"),
    "resume": ["train", "--resume", "runs/killed"],
    "evaluate": ["evaluate", WEIGHTS, "images"],
    "evaluate in JSON": ["evaluate", WEIGHTS, "images", "--json"],
    "predict": ["predict", WEIGHTS, "images/00.png", "images/01.png"],
    "predict into files": ["predict", WEIGHTS, "images", "--output", "found.csv", "--pictures", "drawn"],
    "an option of another task": ["predict", WEIGHTS, "images/00.png", "--top-k", "2"],
    "help": ["train", "--task", "mean_colour", "--help"],
    "misspelt": ["train", "images", "--task", "mean_colour", "--colour.squarde", "1"],
}


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of every command; "runs/killed" was killed in a process of its own."""
    victim = process(place)
    assert victim.stdin is not None
    victim.stdin.write(json.dumps([training("killed")]))
    victim.stdin.close()
    killed = place / "runs" / "killed"
    deadline = time.monotonic() + 60
    while not (killed / "last.ckpt").exists() or (killed / "log.jsonl").read_text().count("step_done") < 6:
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    out, err = process(place).communicate(json.dumps(list(COMMANDS.values())), timeout=120)
    assert out, err
    return dict(zip(COMMANDS, map(tuple, json.loads(out)), strict=True))


@pytest.fixture
def run(place: Path, told: dict[str, tuple[int, str]]) -> Path:
    """The folder of a whole run."""
    code, text = told["train"]
    assert code == 0 and "mean error 0." in text, text
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


def test_killed_and_resumed_to_the_bit(place: Path, run: Path, told: dict[str, tuple[int, str]]) -> None:
    assert told["resume"][0] == 0, told["resume"]
    assert "resumed after" in told["resume"][1]
    for name in ("best", "last"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (run, place / "runs" / "killed"))
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)


def test_evaluate_says_the_scores_of_the_task(run: Path, told: dict[str, tuple[int, str]]) -> None:
    assert "mean error" in told["evaluate"][1]
    found = json.loads(told["evaluate in JSON"][1])
    best = log(run)[-1]["best_scores"]
    assert (found["task"], found["count"]) == ("mean_colour", 8)
    assert found["error"] == pytest.approx(best["error"], rel=1e-5)


def test_predict_on_files(place: Path, told: dict[str, tuple[int, str]]) -> None:
    assert "green" in told["predict"][1]
    assert told["predict into files"][0] == 0
    with (place / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert rows[0].keys() == {"path", "red", "green", "blue", "weights", "error"}
    assert len(list((place / "drawn").glob("*.png"))) == 40


def test_an_option_of_another_task_is_refused(told: dict[str, tuple[int, str]]) -> None:
    code, text = told["an option of another task"]
    assert code == 2
    assert "--top-k" in text and "mean_colour" in text


def test_its_settings_are_shown(told: dict[str, tuple[int, str]]) -> None:
    code, text = told["help"]
    assert code == 0
    assert "--colour.squared" in text and "Weight of the squared error" in text
    assert "--augment.mixup" not in text
    code, text = told["misspelt"]
    assert code == 2
    assert "--colour.squarde" in text and "--colour.squared" in text


def test_reopened_in_python(place: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = run / "best.safetensors"
    with pytest.raises(CheckpointError, match=r"of a task that is not installed: no task is called 'mean_colour'"):
        vision_ssm.load_model(weights)
    for folder in (HERE, place / "site"):
        monkeypatch.syspath_prepend(folder)
    loaded = vision_ssm.load_model(weights)
    assert type(loaded.task()).__name__ == "MeanColour"
    with (place / "found.csv").open() as file:
        row = next(csv.DictReader(file))
    rgb = vision_ssm.predict(loaded, place / "images" / "00.png").results[0].rgb
    assert rgb == pytest.approx([float(row[name]) for name in ("red", "green", "blue")], abs=1e-4)


def test_it_is_short_and_src_does_not_know_it() -> None:
    lines = sum(len(file.read_text().splitlines()) for file in HERE.glob("*.py"))
    assert lines <= 80
    source = Path(vision_ssm.__path__[0])
    assert not any("mean_colour" in file.read_text() for file in source.rglob("*.py"))
