"""Which files are found to be images and masks, in every layout, and which folders are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.tasks.segmentation.scenes import folder, halves, image, mask
from vision_ssm.errors import DataError
from vision_ssm.tasks.segmentation.layouts import Fault, find_layout, recognise


def told(faults: Iterable[Fault]) -> list[tuple[str, str, str, str]]:
    return [(fault.part, fault.path.name, fault.text, fault.kind) for fault in faults]


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
    assert told(layout.faults) == [
        ("train", "later.jpg", "without a mask", "left out"),
        ("test", "test", "as annotations/ has no such folder", "harmless"),
    ]


def test_a_part_without_any_mask_is_left_out_and_told(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        image(tmp_path / part / "a.jpg")
    mask(tmp_path / "train" / "a_mask.png", halves())
    layout = find_layout(tmp_path)
    assert list(layout.parts) == ["train"]
    assert [fault[0::3] for fault in told(layout.faults)] == [("val", "left out"), ("test", "harmless")]
    (tmp_path / "images").mkdir()  # beside the parts: of neither
    assert list(find_layout(tmp_path).parts) == ["train"]


@pytest.mark.parametrize("emptied", [("images", "annotations"), ("annotations",), ("images",)])
def test_a_part_that_is_empty_is_no_reason_not_to_look_at_the_others(tmp_path: Path, emptied: tuple[str, ...]) -> None:
    folder(tmp_path, ["train/a", "val/b"])
    for kind in emptied:
        next((tmp_path / kind / "val").iterdir()).unlink()
    layout = find_layout(tmp_path)
    assert {part: len(pairs) for part, pairs in layout.parts.items()} == {"train": 1, "val": 0}
    ((part, name, text, kind),) = told(layout.faults)
    assert (part, name, kind) == ("val", "val", "refused")
    assert f"holds no {'images' if 'images' in emptied else 'masks'}; expected" in text


def test_previews_beside_the_masks_do_not_count(tmp_path: Path) -> None:
    folder(tmp_path, ["a"])
    image(tmp_path / "annotations" / "a.jpg")
    assert found(tmp_path) == {"all": [("images/a.jpg", "a.png")]}


def test_a_lossy_mask_in_the_place_of_a_mask_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "paired", ["a", "b", "c"])
    for name in ("b", "stray"):
        image(tmp_path / "paired" / "annotations" / f"{name}.jpg")
    (tmp_path / "paired" / "annotations" / "b.png").unlink()
    for name in ("a", "b"):
        image(tmp_path / "flat" / f"{name}.jpg")
    mask(tmp_path / "flat" / "a_mask.png", halves())
    image(tmp_path / "flat" / "b_mask.webp")
    for root, name in (("paired", "b.jpg"), ("flat", "b_mask.webp")):
        ((_, file, text, kind),) = told(find_layout(tmp_path / root).faults)
        assert (file, kind) == (name, "refused")
        assert "files, which may change their values. Export them as PNG" in text


def test_masks_without_an_image_are_refused_each(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a"])
    for name in ("other", "third"):
        mask(tmp_path / "annotations" / "train" / f"{name}.png", halves())
    faults = told(find_layout(tmp_path).faults)
    assert [(name, kind) for _, name, _, kind in faults] == [("other.png", "refused"), ("third.png", "refused")]
    assert re.search(r"other\.png' has no image called 'other' in.*first is 'a\.jpg'; .* called alike", faults[0][2])


def test_a_flat_mask_without_an_image_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    mask(tmp_path / "b_mask.png", halves())
    fault = find_layout(tmp_path).faults[0]
    assert (fault.path.name, fault.kind) == ("b_mask.png", "refused") and "has no image called 'b' in" in fault.text
    assert recognise(tmp_path) is None


def test_jpeg_masks_are_refused_by_name(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    image(tmp_path / "masks" / "a.jpg")
    ((_, name, text, kind),) = told(find_layout(tmp_path).faults)
    assert (name, kind) == ("a.jpg", "refused") and ".jpg files, which may change" in text


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, ["a"])
    image(tmp_path / "images" / "a.png")
    mask(tmp_path / "annotations" / "a.tif", halves())
    twice, both = told(find_layout(tmp_path).faults)
    assert re.search(r"a\.jpg' and '.*a\.png' have one name", twice[2])
    assert re.search(r"a\.png' and '.*a\.tif' are both of 'a\.jpg'", both[2])


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
