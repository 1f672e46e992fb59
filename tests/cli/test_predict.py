"""`vision-ssm predict`: classes of files and folders, files written, and inputs that cannot be used."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import vision_ssm
from vision_ssm.data import strips_tiff


def test_files_and_folders_are_classified(run, trained, images):
    outcome = run("predict", trained / "best.safetensors", images / "dark" / "0.png", images / "light", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["failures"] == []
    tops = [result["classes"][0]["class"] for result in found["results"]]
    assert tops == ["dark"] + ["light"] * 12
    assert sum(entry["probability"] for entry in found["results"][0]["classes"]) == pytest.approx(1)


def test_a_folder_is_searched_for_arrays_too(run, trained, images, tmp_path):
    for name in ("dark", "light"):
        np.save(tmp_path / f"{name}.npy", np.asarray(Image.open(images / name / "0.png")))
    outcome = run("predict", trained / "best.safetensors", tmp_path, "--json")
    assert outcome.code == 0, outcome.err
    assert [result["classes"][0]["class"] for result in json.loads(outcome.out)["results"]] == ["dark", "light"]


def test_a_notice_is_a_note_and_told_once(run, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(strips_tiff, "missing_packages", lambda: ["tifffile"])
    for name in ("a.tif", "b.tif"):
        Image.new("RGB", (40, 33)).save(tmp_path / name, compression="tiff_adobe_deflate")
    arguments = ["predict", trained / "best.safetensors", tmp_path / "a.tif", tmp_path / "a.tif", tmp_path / "b.tif"]
    for _ in range(2):  # a second call in the same process tells it again
        outcome = run(*arguments, "--img-size", "native", "--json")
        assert outcome.code == 0
        lines = outcome.err.splitlines()
        assert len(lines) == 2
        for line, name in zip(lines, ("a.tif", "b.tif"), strict=True):
            assert line.startswith("note: '")
            assert f"{name}' is decoded whole before it is cut into strips; pip install" in line
        assert len(json.loads(outcome.out)["results"]) == 3


def test_table_names_every_image(run, trained, images):
    outcome = run("predict", trained / "best.safetensors", images / "dark", "--top-k", "1")
    assert outcome.code == 0
    for number in range(12):
        assert f"{number}.png" in outcome.out


def test_unreadable_files_are_listed_at_the_end_with_exit_code_1(run, trained, images, tmp_path):
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    whole = (images / "dark" / "0.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (1, 1), 20).save(tmp_path / "pixel.png")
    output = tmp_path / "p.csv"
    outcome = run("predict", trained / "best.safetensors", tmp_path, tmp_path / "gone.png", "--output", output)
    assert outcome.code == 1
    assert "4 of 5 could not be used" in outcome.err
    for name in ("zero.png", "text.jpg", "half.png", "gone.png"):
        assert name in outcome.err
    assert "pixel.png" in outcome.out
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["error"]) for row in rows) == 4
    assert {row["class"] for row in rows if "pixel" in row["path"]} == {"dark", "light"}


def test_json_file_holds_what_the_python_call_returns(run, trained, images, tmp_path):
    output = tmp_path / "p.json"
    assert run("predict", trained / "best.safetensors", images, "--output", output).code == 0
    called = vision_ssm.predict(trained / "best.safetensors", images)
    written = json.loads(output.read_text())
    assert [r["path"] for r in written["results"]] == [r.path for r in called.results]
    for result, other in zip(written["results"], called.results, strict=True):
        assert result["classes"][0]["class"] == other.classes[0][0]
        assert result["classes"][0]["probability"] == pytest.approx(other.classes[0][1], abs=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot open weights file"),
        (b"", "is empty (0 bytes)"),
        (b"no weights at all, just text", "is not a safetensors file"),
        (b"\x80\x02}q\x00.", "published checkpoints are loaded with --model NAME"),
    ],
)
def test_weights_that_are_none(run, images, tmp_path, content, message):
    file = tmp_path / "w.safetensors"
    if content is not None:
        file.write_bytes(content)
    outcome = run("predict", file, images)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_checkpoint_of_another_model_names_keys_and_shapes(run, images, tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"model": {"fc.weight": torch.zeros(3, 4)}}, file)
    outcome = run("predict", file, images, "--model", "vim_nano")
    assert outcome.code == 2
    assert "fc.weight" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_folder_without_images(run, trained, tmp_path):
    outcome = run("predict", trained / "best.safetensors", tmp_path)
    assert outcome.code == 1
    assert "no image files" in outcome.err


def test_output_that_cannot_be_written_is_told_before_the_work(run, trained, images, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run("predict", trained / "best.safetensors", images, "--output", tmp_path / "file" / "p.json")
    assert outcome.code == 2
    assert "cannot write to output folder" in outcome.err
    assert outcome.out == ""


def test_patterns_and_a_list_on_standard_input(run, trained, images, monkeypatch):
    found = run("predict", trained, f"{images}/**/1?.png", "--json")
    paths = [result["path"] for result in json.loads(found.out)["results"]]
    assert paths == sorted(str(file) for file in images.glob("*/1?.png")) and len(paths) == 4
    for arguments in (["predict", trained, "-", "--json"], ["predict", trained, "--json", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join([*paths, ""]).encode())))
        assert run(*arguments) == found
    outcome = run("predict", trained, f"{images}/*.gif")
    assert outcome.code == 1
    assert "no file matches this pattern" in outcome.err


def test_a_file_whose_name_is_a_pattern_is_itself(run, trained, images, tmp_path):
    shutil.copy(images / "dark" / "0.png", tmp_path / "a[1].png")
    outcome = run("predict", trained, tmp_path / "a[1].png", "--json")
    assert json.loads(outcome.out)["results"][0]["path"].endswith("a[1].png")


def test_images_that_take_much_memory_at_their_own_size_are_told_first(run, trained, tmp_path, monkeypatch):
    for name, size in (("small", (32, 32)), ("large", (320, 96))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").touch()
    arguments = ["predict", trained, tmp_path / "*.png", "--img-size"]
    assert "of memory" not in run(*arguments, "native").err
    monkeypatch.setattr("vision_ssm.cli.images._memory_of_this_machine", lambda: 2**20)
    outcome = run(*arguments, "native")
    (told,) = [line for line in outcome.err.splitlines() if "of memory" in line]
    assert "large.png has 320 x 96 pixels: at its own size it may take " in told
    assert "and there are 1.0 MiB" in told
    assert "of memory" not in run(*arguments, "32").err


def test_a_mistyped_path_leaves_no_empty_folder(run, trained, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = trained / "best.safetensors"
    assert run("predict", weights, "gone.jpg", "--pictures", "a").code == 1
    assert run("predict", "gone.safetensors", images, "--pictures", "a", "--output", "b/p.csv").code == 2
    assert run("features", "gone.safetensors", images, "--output", "c").code == 2
    assert run("evaluate", weights, "gone", "--output", "d/s.json").code == 2
    assert run("train", images, "--checkpoint", "gone.pth").code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shipped_run(trained, monkeypatch, tmp_path):
    """The weights of the trained run in the place of those that the package ships."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    shutil.copy(trained / "best.safetensors", folder / "vim_nano_cifar10.safetensors")
    monkeypatch.setattr("vision_ssm.weights.shipped.FOLDER", folder)


@pytest.mark.usefixtures("shipped_run")
def test_without_weights_the_shipped_ones_predict_and_say_what_they_know(run, images):
    file = images / "light" / "0.png"
    outcome = run("predict", file, images / "dark", "--json")
    assert outcome.code == 0, outcome.err
    assert [r["classes"][0]["class"] for r in json.loads(outcome.out)["results"]] == ["light"] + ["dark"] * 12
    assert outcome.err.startswith("no weights named; using vim_nano_cifar10: a vim_")
    assert "knows 2 classes (dark, light); 100.00 % top-1 on its validation images" in outcome.err
    assert outcome.err.count("\n") == 1
    by_name = run("predict", "vim_nano_cifar10", file)
    assert by_name.err == ""
    assert "light" in by_name.out


@pytest.mark.usefixtures("shipped_run")
def test_options_may_stand_between_weights_and_images(run, trained, images):
    files = [images / "dark" / "0.png", images / "light" / "0.png"]
    expected = run("predict", trained / "best.safetensors", *files, "--top-k", 1).out
    assert run("predict", "--top-k", 1, trained / "best.safetensors", *files).out == expected
    assert run("predict", trained / "best.safetensors", "--top-k", 1, *files).out == expected
    without = run("predict", files[0], "--top-k", 1, files[1])
    assert without.out.splitlines()[1:] == expected.splitlines()[1:]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("vim_nano_cifar", "vim_nano_cifar10"),
        ("best.safetensor", "{run}/best.safetensors"),
        ("best", "{run}/best.safetensors"),
        ("last.safetensorss", "{run}/last.safetensors"),
        ("../frist", "{run}"),
    ],
)
def test_misspelt_weights_are_not_taken_for_an_image(run, trained, images, monkeypatch, typed, meant):
    monkeypatch.chdir(trained)
    given = typed if typed == "vim_nano_cifar" else str((trained / typed).parent.resolve() / (trained / typed).name)
    for arguments in ([given, images], [images / "dark" / "0.png", given]):
        outcome = run("predict", *arguments)
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: cannot open weights file {given!r}: No such file or directory")
        assert f"Did you mean {meant.format(run=trained)!r}?" in outcome.err
        assert outcome.out == ""


def test_weights_stand_anywhere_and_once(run, trained, images):
    files = [images / "dark" / "0.png", images / "light" / "0.png"]
    expected = run("predict", trained / "best.safetensors", *files)
    assert f"By {trained / 'best.safetensors'}" in expected.out
    assert run("predict", *files, trained / "best.safetensors") == expected
    assert run("predict", files[0], trained, files[1]) == expected
    outcome = run("predict", files[0], trained / "best.safetensors", trained / "last.safetensors")
    assert outcome.code == 2
    assert "both name weights; give one of them" in outcome.err


def test_the_folder_of_a_run_stands_for_its_best_weights(run, trained, images, tmp_path):
    outcome = run("evaluate", trained, images, "--json")
    assert json.loads(outcome.out)["weights"] == str(trained / "best.safetensors")
    outcome = run("features", trained, images / "dark" / "0.png", "--output", tmp_path, "--json")
    assert json.loads(outcome.out)["weights"] == str(trained / "best.safetensors")
    outcome = run("predict", images / "dark" / "0.png", trained, "--output", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        assert {row["weights"] for row in csv.DictReader(file)} == {str(trained / "best.safetensors")}
    (tmp_path / "empty").mkdir()
    outcome = run("evaluate", tmp_path / "empty", images)
    assert outcome.code == 2
    assert "is a folder; give the weights file, such as" in outcome.err
