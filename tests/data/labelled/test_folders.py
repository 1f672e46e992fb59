"""What a data folder holds is recognised in the usual spellings, said, and refused where it cannot be meant."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from tests.data.labelled.test_sources import fill
from vision_ssm.data.files import image_files
from vision_ssm.data.labelled.folders import ImageFolder, open_folder
from vision_ssm.data.labelled.sources import open_dataset
from vision_ssm.errors import DataError, VisionSSMNotice

PETS = {"cat": 5, "dog": 5}


def opened(root: Path, split: str = "all") -> ImageFolder:
    return open_folder(root, split, val_fraction=0.2)


def told(root: Path, split: str = "all") -> str:
    with pytest.warns(VisionSSMNotice) as caught:
        opened(root, split)
    (message,) = {str(warning.message) for warning in caught}
    return message


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("Training", "Testing"),
        ("train_images", "test_images"),
        ("TrainSet", "ValidationSet"),
        ("train2017", "val2017"),
        ("seg_train", "seg_test"),
        ("training-data", "evaluation data"),
        ("train", "Test"),
        ("Train", "test"),
    ],
)
def test_usual_spellings_of_the_parts(tmp_path: Path, train: str, held: str) -> None:
    fill(tmp_path / train, PETS)
    fill(tmp_path / held, {"cat": 2, "dog": 1})
    for split, count in (("train", 10), ("val", 3), ("test", 3), ("all", 13)):
        samples = opened(tmp_path, split)
        assert (samples.class_names, len(samples)) == (("cat", "dog"), count)


def test_exact_names_win_over_other_spellings(tmp_path: Path) -> None:
    for name in ("train", "train_images", "valid", "Val"):
        fill(tmp_path / name, PETS if name in ("train", "valid") else {"other": 3})
    with pytest.warns(VisionSSMNotice, match=r"images \(Val/, train_images/\)"):
        assert opened(tmp_path, "val").paths[0].startswith(str(tmp_path / "valid"))
        assert opened(tmp_path, "train").class_names == ("cat", "dog")


@pytest.mark.parametrize("depth", [1, 3])
def test_the_only_folder_is_looked_into(tmp_path: Path, depth: int) -> None:
    inner = tmp_path.joinpath(*["archive"] * depth)
    fill(inner, PETS)
    (tmp_path / "labels").mkdir()
    with pytest.warns(VisionSSMNotice, match=r"folders beside those of images \(labels/\)"):
        assert opened(tmp_path).class_names == ("cat", "dog")
    for name in ("cat", "dog"):
        (inner / name).rename(tmp_path / name)
    fill(inner / "Train" / "Train", PETS)
    fill(inner / "Test" / "Test", PETS)
    for name in ("cat", "dog"):
        for file in (tmp_path / name).iterdir():
            file.unlink()
    assert (opened(tmp_path, "val").class_names, len(opened(tmp_path, "val"))) == (("cat", "dog"), 10)


def test_a_single_class_is_not_looked_into(tmp_path: Path) -> None:
    fill(tmp_path / "cat", {"indoors": 2})
    assert opened(tmp_path).class_names == ("cat",)


def test_train_may_be_a_vehicle(tmp_path: Path) -> None:
    fill(tmp_path, {"car": 3, "train": 4, "Training": 2})
    samples = opened(tmp_path)
    assert samples.class_names == ("Training", "car", "train")
    assert samples.targets.count(2) == 4


@pytest.mark.parametrize(
    ("flat", "deep", "message"),
    [
        ({"Train": 3, "Test": 3}, (), r"Train/ and Test/ in .* hold images but no class folders"),
        ({"cat": 3, "test": 3}, (), r"has test/ but no train/ folder"),
        ({}, ("Testing",), r"has Testing/ but no train/ folder"),
        ({}, ("Train", "train_images"), r"has Train/ and train_images/, and each could be its train images"),
        ({}, ("Train", "more"), r"has Train/, which looks like the images to train on, and more/ with more images"),
        ({"train": 3}, (), r"train' holds 3 images but no class folders"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, flat: dict[str, int], deep: tuple[str, ...], message: str
) -> None:
    fill(tmp_path, flat)
    for name in deep:
        fill(tmp_path / name, PETS)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "train")


def test_unlabelled_images_beside_the_parts_are_left_out_and_said(tmp_path: Path) -> None:
    fill(tmp_path / "Train", PETS)
    fill(tmp_path, {"Test": 4})
    fill(tmp_path / "Validation", PETS)
    assert told(tmp_path).endswith("folders beside those of images (Test/).")
    assert len(opened(tmp_path, "val")) == 10


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle", "@Recycle", ".cache"),
        *("__MACOSX", "LOST+FOUND"),
    ],
)
def test_what_systems_leave_is_no_data(tmp_path: Path, name: str) -> None:
    fill(tmp_path, PETS)
    before = opened(tmp_path)
    fill(tmp_path / name, {"0.png": 2})
    fill(tmp_path / "cat" / name, {"0.png": 2})
    for file in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        (tmp_path / "cat" / file).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (opened(tmp_path).paths, opened(tmp_path).class_names) == (before.paths, before.class_names)


@pytest.mark.parametrize("place", ["runs/one", "one", "cat/runs/one", "train/runs/one"])
def test_pictures_of_training_runs_are_no_data(tmp_path: Path, place: str) -> None:
    if place.startswith("train"):
        fill(tmp_path / "val", PETS)
        fill(tmp_path / "train", PETS)
    else:
        fill(tmp_path, PETS)
    before = opened(tmp_path).paths
    run = tmp_path / place
    run.mkdir(parents=True)
    for name in ("config.yaml", "log.jsonl"):
        (run / name).touch()
    Image.new("RGB", (4, 4)).save(run / "curve.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = opened(tmp_path)
    assert (samples.class_names, samples.paths) == (("cat", "dog"), before)
    assert all("training runs" in str(warning.message) for warning in caught)


def test_files_of_other_formats_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, PETS)
    for name in ("a.HEIC", "b.heic", "c.jxl", "README"):
        (tmp_path / "cat" / name).touch()
    assert told(tmp_path).endswith("files of other formats (2 .heic, 1 .jxl, 1 without suffix).")
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "1.HEIC").touch()
    with pytest.raises(DataError, match=r"fox' has no image of a format that is read, only 1 \.heic; convert them"):
        opened(tmp_path)


def test_what_was_found_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path / "few", PETS)
    assert opened(tmp_path / "few", "train").found == (
        f"8 images of 2 classes (cat 4, dog 4) in {tmp_path / 'few'}, 80% of each class"
    )
    fill(tmp_path / "many", {f"{number:02d}": 1 + number % 3 for number in range(11)})
    assert opened(tmp_path / "many").found == f"21 images of 11 classes (1 to 3 each) in {tmp_path / 'many'}"


def test_paths_that_cannot_be_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="home folder that cannot be found"):
        open_dataset("~nobody-of-this-name/images")
    with pytest.raises(DataError, match=r"cannot be looked up: File name too long\."):
        open_dataset("x" * 300)
    fill(tmp_path, PETS)
    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(DataError, match=r"cannot read the data folder .*: Permission denied\."):
        open_dataset(tmp_path)


def test_a_subfolder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "cat", {"inside": 2})
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: refused(path) if str(path).endswith("inside") else real(path))
    with pytest.raises(DataError, match=r"cannot read the folder '.*inside': Permission denied\."):
        image_files(tmp_path / "cat")


def refused(path: Path | str) -> None:
    raise PermissionError(13, "Permission denied", str(path))
