"""`vision-ssm bench`: what it prints, writes and refuses."""

from __future__ import annotations

import importlib.util
import json

import pytest

import vision_ssm.bench.measure
from vision_ssm.bench.memory import CLEAR

MODELS = ["--models", "test_vit", "test_vit+unfused", "vim_nano"]
BRIEF = ["--threads", "1", "--rounds", "2"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(vision_ssm.bench.measure, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(vision_ssm.bench.measure, "SAMPLE_SECONDS", 1e-9)
    monkeypatch.setattr(vision_ssm.bench.measure, "CEILING_SIDE", 64)
    monkeypatch.setattr(vision_ssm.bench.measure, "MEMORY_PROCESSES", 1)
    monkeypatch.setattr(vision_ssm.bench.measure, "LOOK_SECONDS", 0)
    monkeypatch.setattr(vision_ssm.bench.measure.LoadWatch, "cores_of_others", lambda self: 0.0)


def test_measure_write_draw_and_show_again(run, tmp_path):
    path = tmp_path / "r.json"
    memory = [] if CLEAR.exists() else ["--no-memory"]
    outcome = run("bench", *MODELS, "--img-size", "64", "96x64", *BRIEF, *memory, "--output", path, "--plots")
    assert outcome.code == 0, outcome.err
    assert "inference, 96 x 64, batch 1, float32, 1 thread, cpu" in outcome.out
    found = json.loads(path.read_text())
    assert found["complete"]
    assert [(row["model"], row["height"], row["width"]) for row in found["rows"]] == [
        (model, *size) for size in ((64, 64), (96, 64)) for model in MODELS[1:]
    ]
    for row in found["rows"]:
        assert len(row["samples"]) == 2
        assert row["others"] == 0
        assert min(row["samples"]) > 0
        assert row["share_of_ceiling"] > 0
        assert not CLEAR.exists() or row["memory"]["peak_bytes"] > 0
    pictures = {"r_speed.png", "r_memory.png"} if CLEAR.exists() else {"r_speed.png"}
    assert {file.name for file in tmp_path.glob("*.png")} == pictures
    for picture in pictures:
        (tmp_path / picture).unlink()
    again = run("bench", "--show", path, "--plots")
    assert again.code == 0
    assert {file.name for file in tmp_path.glob("*.png")} == pictures
    assert again.out == outcome.out  # paths of the pictures included


def test_a_case_that_fails_is_a_row_and_exit_code_1(run, tmp_path):
    arguments = ["--models", "vim_nano", "test_resnet+unfused", "--img-size", "2", "32", "--no-memory", *BRIEF]
    outcome = run("bench", *arguments, "--output", tmp_path / "r.json")
    assert outcome.code == 1
    assert "vim_nano: " in outcome.out
    assert "test_resnet+unfused: test_resnet has no fused attention to turn off" in outcome.out
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["error"] is None for row in rows] == [False, False, True, False]


def test_training_in_bfloat16_as_json(run):
    outcome = run(
        *("bench", "--models", "vim_nano", "--img-size", "32", "--mode", "training", "--dtype", "bfloat16"),
        *("--no-memory", "--json", "--note", "only a test", *BRIEF),
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    (row,) = found["rows"]
    assert (row["mode"], row["dtype"], row["memory"]) == ("training", "bfloat16", None)
    assert found["circumstances"]["note"] == "only a test"


def test_ctrl_c_writes_what_there_is(run, tmp_path, monkeypatch):
    sample = vision_ssm.bench.measure._Stopwatch.sample
    taken = []

    def interrupted(self):
        if len(taken) == 5:  # the second round's matrix product and first model are done
            raise KeyboardInterrupt
        taken.append(self)
        sample(self)

    monkeypatch.setattr(vision_ssm.bench.measure._Stopwatch, "sample", interrupted)
    arguments = ["--models", "vim_nano", "test_vit", "--img-size", "32", "--no-memory", *BRIEF]
    outcome = run("bench", *arguments, "--output", tmp_path / "r.json")
    assert outcome.code == 130
    assert outcome.err.startswith("error: interrupted")
    assert "test_vit" in outcome.out
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["interrupted"], found["complete"]) == (True, False)
    assert [len(row["samples"]) for row in found["rows"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure: give --models, or --preset with one of vim, vim-small, hierarchical"),
        (["--models", "vim_nanno"], "there is no model 'vim_nanno'. Did you mean 'vim_nano'?"),
        (["--models", "vim_nano", "--dtype", "bf16"], "--dtype must be one of float32, bfloat16, got 'bf16'."),
        (["--preset", "vims"], "--preset must be one of vim, vim-small, hierarchical, got 'vims'."),
        (["--models", "vim_nano", "--plots"], "--plots draws beside the results: give --output FILE.json too"),
        (["--models", "vim_nano", "--plots", "--output", "r.json"], "give two sizes or more (--img-size)"),
        (["--models", "vim_nano", "--output", "r.txt"], "expected a file name that ends in .json, got 'r.txt'"),
        (["--models", "vim_nano", "--show", "r.json"], "--show measures nothing"),
        (["--show", "missing.json"], "cannot read results 'missing.json': No such file or directory."),
        (["--models", "vim_nano", "--device", "gpu"], "unknown device 'gpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use(run, arguments, message):
    outcome = run("bench", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_plots_without_matplotlib_are_refused_before_measuring(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    outcome = run("bench", *MODELS, "--img-size", "64", "96", "--output", "r.json", "--plots")
    assert outcome.code == 2
    assert "--plots needs matplotlib: pip install matplotlib" in outcome.err
