"""Which files are found to be images and masks, in every layout, and which folders are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.segmentation.scenes import folder, halves, image, mask
from vision_ssm.errors import DataError
from vision_ssm.tasks.segmentation.layouts import find_layout


def found(root: Path) -> dict[str, list[tuple[str, str]]]:
    layout = find_layout(root)
    for pairs in layout.parts.values():
        assert all(pair.image == layout.place / pair.name for pair in pairs)
    return {part: [(pair.name, pair.mask.name) for pair in pairs] for part, pairs in layout.parts.items()}


@pytest.mark.parametrize("masks", ["annotations", "masks", "labels", "Label", "ground_truth"])
def test_folders_of_images_and_masks(tmp_path: Path, masks: str) -> None:
    folder(tmp_path, ["train/b", "train/a", "val/c"], masks=masks)
    assert found(tmp_path) == {
        "train": [("images/train/a.jpg", "a.png"), ("images/train/b.jpg", "b.png")],
        "val": [("images/val/c.jpg", "c.png")],
    }


def test_without_parts_everything_is_of_one_kind(tmp_path: Path) -> None:
    folder(tmp_path, ["a", "deeper/b"])
    assert found(tmp_path) == {"all": [("images/a.jpg", "a.png"), ("images/deeper/b.jpg", "b.png")]}


def test_other_spellings_below_a_folder_of_everything(tmp_path: Path) -> None:
    folder(tmp_path / "release", ["training/a", "validation/b"])
    assert list(found(tmp_path)) == ["train", "val"]
    assert find_layout(tmp_path).classes == tmp_path / "release" / "classes.json"


def test_parts_with_both_folders_in_each(tmp_path: Path) -> None:
    folder(tmp_path / "train", ["a"])
    folder(tmp_path / "test", ["b"])
    assert found(tmp_path) == {"train": [("train/images/a.jpg", "a.png")], "test": [("test/images/b.jpg", "b.png")]}


@pytest.mark.parametrize("ending", ["_mask", "-label", "_gt"])
def test_masks_beside_their_images(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b_2"):
        image(tmp_path / f"{name}.jpg")
        mask(tmp_path / f"{name}{ending}.png", halves())
    assert found(tmp_path) == {"all": [("a.jpg", f"a{ending}.png"), ("b_2.jpg", f"b_2{ending}.png")]}


def test_masks_beside_their_images_in_parts(tmp_path: Path) -> None:
    for part in ("train", "val"):
        image(tmp_path / part / "a.jpg")
        mask(tmp_path / part / "a_mask.png", halves())
    assert found(tmp_path) == {part: [(f"{part}/a.jpg", "a_mask.png")] for part in ("train", "val")}


def test_an_ending_of_masks_in_a_folder_of_their_own(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a_mask.png", halves())
    assert found(tmp_path) == {"all": [("images/a.jpg", "a_mask.png")]}


def test_ade20k_is_known_by_its_folder_and_files(tmp_path: Path) -> None:
    folder(tmp_path / "ADEChallengeData2016", ["training/ADE_train_1", "validation/ADE_val_1"], classes=None)
    layout = find_layout(tmp_path)
    assert layout.is_ade20k
    assert list(layout.parts) == ["train", "val"]
    assert not find_layout(folder(tmp_path / "mine", ["train/a"])).is_ade20k


def test_images_without_a_mask_are_left_out_and_told(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a", "val/b"])
    image(tmp_path / "images" / "train" / "later.jpg")
    image(tmp_path / "images" / "test" / "secret.jpg")
    layout = find_layout(tmp_path)
    assert [pair.image.name for pair in layout.parts["train"]] == ["a.jpg"]
    assert layout.left_out == (
        "1 images without a mask in images/train/ (later.jpg)",
        "images/test/, as annotations/ has no such folder",
    )


def test_previews_beside_the_masks_do_not_count(tmp_path: Path) -> None:
    folder(tmp_path, ["a"])
    image(tmp_path / "annotations" / "a.jpg")
    assert found(tmp_path) == {"all": [("images/a.jpg", "a.png")]}


def test_a_mask_without_an_image_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a"])
    mask(tmp_path / "annotations" / "train" / "other.png", halves())
    with pytest.raises(DataError, match=r"other\.png.*has no image of that name.*first is 'a\.jpg'.*called alike"):
        find_layout(tmp_path)


def test_a_flat_mask_without_an_image_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    mask(tmp_path / "b_mask.png", halves())
    with pytest.raises(DataError, match=r"b_mask\.png.*no image called 'b' beside it"):
        find_layout(tmp_path)


def test_jpeg_masks_are_refused_by_name(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    image(tmp_path / "masks" / "a.jpg")
    with pytest.raises(DataError, match=r"masks/a\.jpg.*\.jpg files, which may change"):
        find_layout(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, ["a"])
    image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg' and 'a\.png' have one name"):
        find_layout(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_nothing_to_train_on_is_refused(tmp_path: Path, split: str) -> None:
    folder(tmp_path, [f"{split}/a"])
    with pytest.raises(DataError, match=f"has {split} images with masks but none to train on"):
        find_layout(tmp_path)


def test_two_possible_folders_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a"], masks="masks")
    mask(tmp_path / "labels" / "train" / "a.png", halves())
    with pytest.raises(DataError, match="labels/ and masks/, and each could be meant"):
        find_layout(tmp_path)


def test_a_folder_of_something_else_says_what_is_expected(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "a.jpg")
    image(tmp_path / "dog" / "a.jpg")
    with pytest.raises(DataError, match=r"no images with masks.*holds cat/, dog/: expected images/ and annotations/"):
        find_layout(tmp_path)
