"""A data set is looked through: what cannot be read, what shows the same, which classes there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.analysis import check_data
from vision_ssm.errors import ConfigError, DataError


def picture(path: Path, seed: int, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes in two parts."""
    for number, (part, count) in enumerate((("train", 6), ("val", 2))):
        for of_class, name in enumerate(("cat", "dog")):
            for image in range(count):
                picture(tmp_path / "pets" / part / name / f"{image}.png", 100 * number + 10 * of_class + image)
    return tmp_path / "pets"


def test_nothing_is_found_in_good_data(classes: Path) -> None:
    picture(classes / "train" / "cat" / "large.png", 1000, (40, 30))
    report = check_data(classes)
    assert (report.task, report.counted, report.problems, report.shared) == ("classification", "images", (), ())
    train, val = report.splits
    assert (train.split, train.images, val.split, val.images) == ("train", 13, "val", 4)
    assert train.classes == train.amounts == {"cat": 7, "dog": 6}
    assert train.sizes == ((6, 4), (6, 4), (40, 30))
    assert json.loads(json.dumps(report.to_dict()))["splits"][1]["images"] == 4


def test_files_that_cannot_be_read_are_all_listed(classes: Path) -> None:
    broken = [classes / "train" / "cat" / "0.png", classes / "val" / "dog" / "1.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    report = check_data(classes, workers=3)
    assert [Path(path) for part in report.splits for path, _ in part.unreadable] == broken
    assert report.problems == (
        "train: 1 of 12 images cannot be used.", "val: 1 of 4 images cannot be used."
    )  # fmt: skip
    assert report.splits[0].images == 11


def test_what_shows_the_same_is_told_whatever_the_format(classes: Path) -> None:
    with Image.open(classes / "train" / "cat" / "0.png") as image:
        image.save(classes / "train" / "dog" / "again.bmp")
        image.save(classes / "val" / "cat" / "leaked.png")
    report = check_data(classes)
    (same,) = report.splits[0].duplicates
    assert [Path(path).name for path in same] == ["0.png", "again.bmp"]
    ((split, path, other, twin),) = report.shared
    assert (split, Path(path).name, other, Path(twin).name) == ("train", "0.png", "val", "leaked.png")
    assert report.problems == (
        "train: 2 files show what another one shows.",
        "1 images are in train and in val: scores there tell too much.",
    )


def test_few_images_of_a_class_are_told(tmp_path: Path) -> None:
    for image in range(6):
        picture(tmp_path / "flat" / "cat" / f"{image}.png", image)
    picture(tmp_path / "flat" / "rare" / "one.png", 50)
    report = check_data(tmp_path / "flat")
    assert [part.split for part in report.splits] == ["all"]
    assert report.problems == ("all: 'rare' in fewer than 5 images.",)


@pytest.fixture
def masks(tmp_path: Path) -> Callable[..., Path]:
    def make(*labels: int, size: tuple[int, int] = (6, 4)) -> Path:
        folder = tmp_path / "scenes"
        for number, label in enumerate(labels):
            picture(folder / "images" / "train" / f"{number}.png", number)
            mask = np.zeros((4, 6), np.uint8)
            mask[1:3, 1:4] = label
            (folder / "annotations" / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).resize(size).save(folder / "annotations" / "train" / f"{number}.png")
        for kind in ("images", "annotations"):
            (folder / kind / "val").mkdir(parents=True)
        picture(folder / "images" / "val" / "v.png", 99)
        Image.new("L", (6, 4), 1).save(folder / "annotations" / "val" / "v.png")
        (folder / "classes.json").write_text(json.dumps(["ground", "roof", "water"]))
        return folder

    return make


def test_pixels_of_masks_are_counted(masks: Callable[..., Path]) -> None:
    report = check_data(masks(1, 1, 255, 1, 1, 1), "segmentation")
    train, val = report.splits
    assert report.counted == "pixels"
    assert train.classes == {"ground": 6, "roof": 5, "water": 0}
    assert train.amounts == {"ground": 6 * 18, "roof": 5 * 6, "water": 0}
    assert val.amounts == {"ground": 0, "roof": 24, "water": 0}
    assert report.problems == (
        "train: 'water' is not seen in any image.", "val: 'ground', 'water' are not seen in any image."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "size", "reason"), [((1, 7, 1), (6, 4), "7"), ((1, 1, 1), (3, 4), "3 x 4|3x4|4 x 3|4x3")]
)
def test_masks_that_do_not_fit_are_listed(
    masks: Callable[..., Path], labels: tuple[int, ...], size: tuple[int, int], reason: str
) -> None:

    report = check_data(masks(*labels, size=size), "segmentation")
    assert report.splits[0].unreadable
    assert all(re.search(reason, fault) for _, fault in report.splits[0].unreadable)


def test_what_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check_data(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        check_data(tmp_path, workers=0)


def test_the_command_says_it(classes: Path) -> None:
    from tests.cli.commands import python

    (classes / "train" / "cat" / "0.png").write_bytes(b"GIF89a")
    done = python(f"from vision_ssm.cli.main import main; raise SystemExit(main(['data', 'check', {str(classes)!r}]))")
    assert done.returncode == 1, done.stderr
    assert "train: 1 of 12 images cannot be used." in done.stdout
    assert "0.png" in done.stdout
    done = python(
        f"from vision_ssm.cli.main import main; raise SystemExit(main(['data', 'check', {str(classes)!r}, '--json']))"
    )
    assert json.loads(done.stdout)["task"] == "classification"
