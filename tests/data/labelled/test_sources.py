"""Data sets: layouts, held-out choice, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_ssm.data.labelled import folders
from vision_ssm.data.labelled.folders import image_files
from vision_ssm.data.labelled.sources import open_dataset
from vision_ssm.data.loader import EpochLoader
from vision_ssm.data.splits import held_out
from vision_ssm.errors import DataError
from vision_ssm.tasks.registry import find_task


def fill(root: Path, classes: dict[str, int], size: int = 4) -> Path:
    """Make class folders with so many images each; the colour tells class and number."""
    for target, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (size, size), (target, number, 0)).save(root / name / f"{number:03d}.png")
    return root


def colours(dataset: object) -> set[tuple[int, int]]:
    return {dataset[i][0].getpixel((0, 0))[:2] for i in range(len(dataset))}


def test_tree_with_train_and_val(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"dog": 3, "cat": 2})
    fill(tmp_path / "val", {"dog": 1, "cat": 1})
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert train.class_names == val.class_names == ("cat", "dog")
    assert list(train.targets) == [0, 0, 1, 1, 1]
    assert (len(val), len(open_dataset(tmp_path, "all"))) == (2, 7)
    image, target = train[4]
    assert (image.mode, image.getpixel((0, 0)), target) == ("RGB", (0, 2, 0), 1)
    assert train.paths[4] == str(tmp_path / "train" / "dog" / "002.png")


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_other_names_of_the_held_out_folder(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", {"a": 2})
    fill(tmp_path / name, {"a": 1})
    assert len(open_dataset(tmp_path, "val")) == 1
    assert len(open_dataset(tmp_path, "train")) == 2


def test_test_split_is_preferred_where_it_exists(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 4})
    fill(tmp_path / "val", {"a": 1})
    fill(tmp_path / "test", {"a": 2})
    assert [len(open_dataset(tmp_path, split)) for split in ("train", "val", "test", "all")] == [4, 1, 2, 7]


@pytest.mark.parametrize("inside_train", [False, True])
def test_an_undivided_tree_is_divided_by_class(tmp_path: Path, inside_train: bool) -> None:
    fill(tmp_path / "train" if inside_train else tmp_path, {"a": 10, "b": 5, "single": 1})
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert [list(val.targets).count(target) for target in range(3)] == [2, 1, 0]
    assert not set(train.paths) & set(val.paths)
    assert len(train) + len(val) == len(open_dataset(tmp_path, "all")) == 16
    assert open_dataset(tmp_path, "val").paths == val.paths


def test_the_choice_survives_moving_the_folder_and_is_nearly_unmoved_by_new_files(tmp_path: Path) -> None:
    first = fill(tmp_path / "here", {"a": 50, "b": 50})
    chosen = colours(open_dataset(first, "val"))
    first.rename(tmp_path / "there")
    assert colours(open_dataset(tmp_path / "there", "val")) == chosen
    Image.new("RGB", (4, 4), (0, 200, 0)).save(tmp_path / "there" / "a" / "new.png")
    assert len(colours(open_dataset(tmp_path / "there", "val")) ^ chosen) <= 2


def test_held_out_does_not_depend_on_the_order_and_larger_shares_contain_smaller_ones() -> None:
    names = [f"a/{number}" for number in range(100)]
    chosen = {names[i] for i in held_out(names, [0] * 100, 0.2)}
    turned = names[::-1]
    assert {turned[i] for i in held_out(turned, [0] * 100, 0.2)} == chosen
    assert len(chosen) == 20
    assert {names[i] for i in held_out(names, [0] * 100, 0.1)} < chosen


def test_a_folder_called_val_is_taken_whole_for_evaluation(tmp_path: Path) -> None:
    fill(tmp_path / "val", {"a": 5, "b": 5})
    assert len(open_dataset(tmp_path / "val", "val")) == 10
    assert len(open_dataset(tmp_path / "val", "train")) == 8


def test_only_visible_image_files_count_in_any_depth(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2})
    (tmp_path / "a" / "deep").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "a" / "deep" / "X.JPG", format="JPEG")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert [file.name for file in image_files(tmp_path / "a")] == ["000.png", "001.png", "X.JPG"]
    assert open_dataset(tmp_path, "all").class_names == ("a",)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder and no data set is called .*nowhere.*names are digits"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is empty; expected one folder of images per class"):
        open_dataset(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; give a folder of class folders"):
        open_dataset(tmp_path / "file")
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 images but no class folders"):
        open_dataset(tmp_path)


def test_class_folder_without_a_readable_image(tmp_path: Path) -> None:
    fill(tmp_path, {"good": 2, "none": 0})
    with pytest.raises(DataError, match=r"class folder '.*none' has no image"):
        open_dataset(tmp_path)
    for number in range(3):
        (tmp_path / "none" / f"{number}.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"class folder '.*none' has no readable image among 3 files.*0\.png"):
        open_dataset(tmp_path)


def test_an_unreadable_file_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 3})
    (tmp_path / "a" / "001.png").write_bytes(b"")
    dataset = open_dataset(tmp_path, "all")
    assert dataset[0][1] == 0
    with pytest.raises(DataError, match=r"001\.png.*0 bytes"):
        dataset[1]


def test_classes_must_agree_between_the_splits(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 1, "dog": 1})
    fill(tmp_path / "val", {"cats": 1, "dog": 1})
    with pytest.raises(DataError, match=r"'cat' only in train/; 'cats' only in val/\. Did you mean 'cat'\?"):
        open_dataset(tmp_path, "train")


def test_held_out_folder_alone_is_not_a_data_set(tmp_path: Path) -> None:
    fill(tmp_path / "val", {"a": 1})
    with pytest.raises(DataError, match="has val/ but no train/ folder"):
        open_dataset(tmp_path)


def test_one_image_per_class_leaves_nothing_to_hold_out(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 1, "b": 1})
    assert len(open_dataset(tmp_path, "train")) == 2
    with pytest.raises(DataError, match="one image per class, so nothing can be held out"):
        open_dataset(tmp_path, "val")


def test_bad_names_and_fractions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'cifar10'\?"):
        open_dataset("cifar1O")
    with pytest.raises(DataError, match=r"unknown split 'vall'.*Did you mean 'val'"):
        open_dataset("digits", "vall")
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(DataError, match="between 0 and 1"):
            open_dataset("digits", val_fraction=fraction)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    train, val = open_dataset("digits", "train"), open_dataset("digits", "val")
    assert train.class_names == tuple("0123456789")
    assert len(train) + len(val) == 1797
    assert 350 <= len(val) <= 370
    assert not set(train.paths) & set(val.paths)
    image, target = train[0]
    assert (image.size, image.mode, train.mirror_safe) == ((8, 8), "RGB", False)
    assert target == int(train.targets[0])
    assert max(np.asarray(val[i][0]).max() for i in range(20)) == 255


def test_torchvision_sets_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"'cifar10' is not in .*vision-ssm'; allow the download"):
        open_dataset("cifar10", "val")


def test_torchvision_download_failure_names_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision.datasets

    def fail(*_: object, **__: object) -> None:
        print("downloading")
        raise OSError("network unreachable")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(DataError, match=r"could not be downloaded.*network unreachable"):
        open_dataset("cifar100", "train", download=True)
    assert capsys.readouterr() == ("", "")


def test_torchvision_classes_are_sorted_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class Stub:
        classes = ("zebra", "ant")
        targets = (0, 1, 1)

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            self.data = np.full((3, 2, 2, 3), 7 if train else 9, dtype=np.uint8)

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Stub)
    dataset = open_dataset("cifar10", "all")
    assert (dataset.class_names, list(dataset.targets)) == (("ant", "zebra"), [1, 0, 0, 1, 0, 0])
    assert dataset[0][0].getpixel((0, 0)) == (7, 7, 7)
    assert open_dataset("cifar10", "val")[0][0].getpixel((0, 0)) == (9, 9, 9)


def test_small_data_sets_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a": 2})
    reads = []
    real = folders.read_any
    monkeypatch.setattr(folders, "read_any", lambda path, **options: reads.append(path) or real(path, **options))
    cached = open_dataset(tmp_path, "all")
    first, again = cached[1][0], cached[1][0]
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert len(reads) == 1
    monkeypatch.setattr(folders, "CACHE_BYTES", 10)
    uncached = open_dataset(tmp_path, "all")
    assert uncached[1][0].size == uncached[1][0].size
    assert len(reads) == 3


def test_class_folders_are_recognised_and_pairs_are_not(tmp_path: Path) -> None:
    for name, files in (("cat", "ab"), ("dog", "cd"), ("images", "ab"), ("masks", "ab")):
        for file in files:
            place = tmp_path / ("pairs" if name in ("images", "masks") else "classes") / name / f"{file}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2)).save(place)
    recognises = find_task("classification").recognises
    assert recognises(tmp_path / "classes") == "folders of images per class: cat/ and dog/"
    assert recognises(tmp_path / "pairs") is None
    assert recognises(tmp_path / "pairs" / "images") is None


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="processes share what they keep on Linux")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_keep_a_data_set_about_once(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a": 6, "b": 6}, size=64)
    data = open_dataset(tmp_path, "all")
    assert isinstance(data, folders.ImageFolder) and data._kept is not None
    loader = EpochLoader(data, lambda image, target: (torch.ones(1), target), batch_size=1, workers=workers, train=True)
    for epoch in range(4):
        loader.set_position(epoch)
        assert len(list(loader)) == 12
    decoded = 12 * 64 * 64 * 3
    assert decoded <= data._kept.kept_bytes < 1.3 * decoded  # an image that two of them decode at a time counts twice
    monkeypatch.setattr(folders, "read_any", lambda *_, **__: pytest.fail("decoded again"))
    assert data[7][0].getpixel((0, 0)) == (1, 1, 0)
