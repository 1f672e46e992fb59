"""Opening images with masks: splits, class indices, and errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from tests.tasks.segmentation.scenes import CLASSES, folder, halves, image, mask
from vision_ssm.analysis import check_data
from vision_ssm.data.loader import EpochLoader
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import DataError, VisionSSMNotice
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.segmentation.settings import SegmentationSettings
from vision_ssm.tasks.segmentation.sources import ChosenMasks, matched, open_masks
from vision_ssm.tasks.segmentation.task import Segmentation
from vision_ssm.tasks.segmentation.transforms import Augment, TrainTransform


def names(samples: object) -> list[str]:
    return [Path(path).stem for path in samples.paths]


def test_a_sample_is_an_image_and_class_indices(tmp_path: Path) -> None:
    samples = open_masks(folder(tmp_path / "town", ["train/a", "train/b", "val/c"]))
    assert (samples.name, samples.class_names, samples.palette) == (
        "town",
        ("sky", "road"),
        ((0, 0, 255), (90, 90, 90)),
    )
    picture, target = samples[1]
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (8, 6), (10, 10, 10))
    assert isinstance(target, tv_tensors.Mask)
    assert target.dtype == torch.uint8
    assert target.tolist() == halves().tolist() == samples.mask(1).tolist()
    assert samples.found == f"2 images of 2 classes (sky, road) in {tmp_path / 'town'}, train"


def test_some_of_the_samples_keep_their_masks(tmp_path: Path) -> None:
    whole = open_masks(folder(tmp_path, ["train/a", "train/b", "train/c", "val/d"]))
    part = ChosenMasks(whole, [2, 0])
    assert (names(part), part.class_names) == (["c", "a"], ("sky", "road"))
    assert [Path(path).stem for path in part.mask_paths] == ["c", "a"]
    for position, of_whole in enumerate((2, 0)):
        assert part.mask(position).tolist() == whole.mask(of_whole).tolist() == part[position][1].tolist()
    assert part.found == f"2 of {whole.found}"
    renamed = [matched(samples, ("road", "sky"), whole.palette) for samples in (part, whole)]
    assert renamed[0].mask(0).tolist() == renamed[1].mask(2).tolist() != part.mask(0).tolist()


def test_parts_are_what_the_folder_says(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a", "train/b", "val/c", "test/d"])
    opened = {split: names(open_masks(tmp_path, split)) for split in ("train", "val", "test", "all")}
    assert opened == {"train": ["a", "b"], "val": ["c"], "test": ["d"], "all": ["a", "b", "c", "d"]}


def test_without_parts_a_share_is_held_out_by_name(tmp_path: Path) -> None:
    folder(tmp_path, [f"s{number}" for number in range(20)])
    train, val = (names(open_masks(tmp_path, split, val_fraction=0.25)) for split in ("train", "val"))
    assert (len(train), len(val)) == (15, 5)
    assert sorted(train + val) == sorted(names(open_masks(tmp_path, "all")))
    assert val == names(open_masks(tmp_path, "test", val_fraction=0.25))
    folder(tmp_path, ["s20"])
    assert len(set(val) - set(names(open_masks(tmp_path, "val", val_fraction=0.25)))) <= 1


def test_ids_colours_and_black_and_white(tmp_path: Path) -> None:
    listed = [{**CLASSES[0], "id": 10}, {**CLASSES[1], "id": 300}]
    folder(tmp_path, ["a", "b", "c"], classes={"classes": listed, "ignore": [0, 255, 1]})
    mask(tmp_path / "annotations" / "b.png", np.full((6, 8), 300, np.uint16))
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[..., 2], colours[:, :4] = 255, 90
    mask(tmp_path / "annotations" / "c.png", colours)
    samples = open_masks(tmp_path, "all")
    assert set(samples.mask(0).ravel()) == {255}
    assert set(samples.mask(1).ravel()) == {1}
    assert samples.mask(2)[0].tolist() == [1] * 4 + [0] * 4


def test_classes_are_searched_for_where_nothing_lists_them(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a", "val/b"], classes=None)
    mask(tmp_path / "annotations" / "val" / "b.png", halves(right=7))
    samples = open_masks(tmp_path, "train")
    assert samples.class_names == ("class 0", "class 1", "class 7")
    assert open_masks(tmp_path, "val")[0][1].unique().tolist() == [0, 2, 255]


def test_black_and_white_masks_need_no_list(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"{name}.jpg")
        mask(tmp_path / f"{name}_mask.png", np.where(halves() == 1, 255, 0).astype(np.uint8))
    samples = open_masks(tmp_path, "all")
    assert samples.class_names == ("background", "foreground")
    assert samples.mask(0)[0].tolist() == [0] * 4 + [1] * 4


def test_black_and_white_masks_with_a_list_that_ignores_white_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, ["a", "b"])
    for name in ("a", "b"):
        mask(tmp_path / "annotations" / f"{name}.png", np.where(halves() == 1, 255, 0).astype(np.uint8))
    with pytest.raises(DataError, match=r'hold 0 and 255 only.*"name": "road", "id": 255'):
        open_masks(tmp_path, "all")


def test_ade20k_takes_zero_for_what_does_not_count(tmp_path: Path) -> None:
    root = folder(tmp_path / "ADEChallengeData2016", ["training/ADE_train_1", "validation/ADE_val_1"], classes=None)
    for part, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        mask(root / "annotations" / part / f"{name}.png", np.array([[0, 1, 150]] * 6, np.uint8))
    samples = open_masks(tmp_path, "val")
    assert len(samples.class_names) == 150
    assert samples.mask(0)[0].tolist() == [255, 0, 149]


def test_an_all_ignored_mask_is_a_sample(tmp_path: Path) -> None:
    folder(tmp_path, ["a", "b"])
    mask(tmp_path / "annotations" / "b.png", np.full((6, 8), 255, np.uint8))
    assert open_masks(tmp_path, "all")[1][1].unique().tolist() == [255]


def test_sizes_that_differ_name_both_files(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a"])
    mask(tmp_path / "annotations" / "train" / "a.png", halves(6, 9))
    samples = open_masks(tmp_path)
    with pytest.raises(DataError, match=r"a\.jpg' has 6 x 8 pixels and its mask.*a\.png', 6 x 9"):
        samples[0]


def test_labels_out_of_range_name_the_file_and_the_numbers(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a"])
    mask(tmp_path / "annotations" / "train" / "a.png", halves(right=9))
    with pytest.raises(DataError, match=r"a\.png' holds numbers that stand for no class: 9 \(24 pixels\).*0 to 1"):
        open_masks(tmp_path)


def test_a_picture_in_place_of_a_mask_is_no_list_of_classes(tmp_path: Path) -> None:
    folder(tmp_path, ["a"], classes=None)
    mask(tmp_path / "annotations" / "a.png", np.arange(1200, dtype=np.uint16).reshape(30, 40))
    with pytest.raises(DataError, match=r"1,200 different numbers.*a\.png"):
        open_masks(tmp_path, "all")


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a"])
    image(tmp_path / "images" / "train" / "b.jpg")
    image(tmp_path / "images" / "val" / "c.jpg")
    with pytest.warns(
        VisionSSMNotice, match=r": images/train/b\.jpg without a mask; images/val as annotations/ has no"
    ):
        samples = open_masks(tmp_path)
    assert samples.found.endswith(
        "; left out: images/train/b.jpg without a mask; images/val as annotations/ has no such folder"
    )
    mask(tmp_path / "annotations" / "val" / "c.png", halves())
    for number in range(5):
        image(tmp_path / "images" / "val" / f"{number}.jpg")
    told = r"images/val/0\.jpg, images/val/1\.jpg, images/val/2\.jpg and 2 more without a mask\.$"
    with pytest.warns(VisionSSMNotice, match=told):
        open_masks(tmp_path, "val")


def test_what_does_not_fit_is_an_error_unless_somebody_looks_at_all_of_it(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a", "val/b"])
    for name in ("x", "y", "z"):
        mask(tmp_path / "annotations" / "val" / f"{name}.png", halves())
    with pytest.raises(DataError, match=r"x\.png' has no image.* 2 more do not fit: y\.png, z\.png\.$"):
        open_masks(tmp_path)
    task = Segmentation(from_mapping(SegmentationSettings, {"data": {"path": str(tmp_path)}}))
    assert task.faults(task.open_unseen("train")) == []
    unseen = task.open_unseen("val")
    assert [Path(path).name for path, _ in task.faults(unseen)] == ["x.png", "y.png", "z.png"]
    with pytest.raises(DataError, match=r"x\.png' has no image"):
        task.adopt(unseen)


def test_without_any_pair_a_check_needs_a_list_of_classes(tmp_path: Path) -> None:
    folder(tmp_path, [f"train/{name}" for name in "abcdef"], classes=CLASSES)
    for path in (tmp_path / "annotations" / "train").iterdir():
        path.rename(path.with_stem(f"of_{path.stem}"))
    with pytest.warns(VisionSSMNotice, match="and 3 more without a mask"):
        (part,) = check_data(tmp_path, "segmentation").splits
    assert (part.split, part.images, len(part.faults)) == ("all", 0, 12)
    (tmp_path / "classes.json").unlink()
    with pytest.raises(DataError, match=r"of_a\.png' has no .* 5 more do not fit: of_b\.png, .* and 2 more\.$"):
        check_data(tmp_path, "segmentation")


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_a_check_lists_every_fault_of_every_part(tmp_path: Path, classes: object) -> None:
    folder(
        tmp_path, [*(f"train/{number}" for number in range(6)), "train/torn", "train/empty", "val/v"], classes=classes
    )
    for name, content in (("torn", b"RIFF"), ("empty", b"")):
        (tmp_path / "annotations" / "train" / f"{name}.png").write_bytes(content)
    image(tmp_path / "images" / "train" / "bare.jpg")
    image(tmp_path / "images" / "test" / "secret.jpg")
    (tmp_path / "annotations" / "val" / "v.png").unlink()
    with pytest.warns(VisionSSMNotice, match=r"train': images/train/bare\.jpg without a mask"):
        report = check_data(tmp_path, "segmentation")
    train, val = report.splits
    assert (train.split, train.images, val.split, val.images) == ("train", 6, "val", 0)
    reasons = {Path(path).stem: reason for path, reason in train.unreadable}
    assert reasons.keys() == {"torn", "empty"}
    assert reasons["torn"].endswith("torn.png': expected a PNG, TIFF, BMP or GIF file.")
    assert [(Path(path).name, text) for path, text in train.faults] == [("bare.jpg", "without a mask")]
    assert [Path(path).name for path, _ in train.asides] == ["test"]
    assert [Path(path).name for path, _ in val.faults] == ["val"]
    assert {"train: 1 fault in the annotations.", "val: not one image can be used."} <= set(report.problems)


def test_masks_that_are_all_unreadable_say_so(tmp_path: Path) -> None:
    folder(tmp_path, ["a", "b"], classes=None)
    for name in ("a", "b"):
        (tmp_path / "annotations" / f"{name}.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"cannot read mask '.*a\.png': expected a PNG"):
        check_data(tmp_path, "segmentation")


def test_masks_without_any_class_are_refused_in_training_and_told_elsewhere(tmp_path: Path) -> None:
    folder(tmp_path, [f"{part}/{number:02}" for part, count in (("train", 40), ("val", 2)) for number in range(count)])
    masks = {part: sorted((tmp_path / "annotations" / part).iterdir()) for part in ("train", "val")}
    for path in (*masks["train"][:-1], *masks["val"]):
        mask(path, np.full((6, 8), 255, np.uint8))
    assert len(open_masks(tmp_path)) == 40  # the last one has classes
    told = r"none of the 2 masks for val .*val/00\.png, .*val/01\.png hold 255 alone. The 2 classes are 0 to 1; what "
    with pytest.warns(VisionSSMNotice, match=told):
        open_masks(tmp_path, "val")
    mask(masks["train"][-1], np.full((6, 8), 255, np.uint8))
    with pytest.raises(DataError, match=r"none of the 40 masks for train .* and 37 more hold 255 alone.*Label pixels"):
        open_masks(tmp_path)


def test_the_fingerprint_follows_the_masks_and_not_the_place(tmp_path: Path) -> None:
    first, second = (open_masks(folder(tmp_path / name / "data", ["train/a"])) for name in ("x", "y"))
    assert first.fingerprint == second.fingerprint
    before = first.fingerprint
    mask(tmp_path / "x" / "data" / "annotations" / "train" / "a.png", halves(left=1, right=0))
    assert open_masks(tmp_path / "x" / "data").fingerprint != before


@pytest.mark.parametrize(
    ("split", "fraction", "reason"),
    [("vall", 0.2, "unknown split 'vall'.*Did you mean 'val'"), ("val", 1.0, "between 0 and 1, got 1.0")],
)
def test_wrong_arguments(tmp_path: Path, split: str, fraction: float, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_masks(tmp_path, split, val_fraction=fraction)


def test_one_image_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one image with a mask"):
        open_masks(folder(tmp_path, ["a"]), "val")


@pytest.mark.parametrize(("name", "reason"), [("gone", "does not exist"), ("file", "is a file")])
def test_what_is_no_folder(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=reason):
        open_masks(tmp_path / name)


def test_classes_are_numbered_as_a_model_knows_them(tmp_path: Path) -> None:
    samples = open_masks(folder(tmp_path, ["train/a"]))
    palette = [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    known = matched(samples, ["road", "tree", "sky"], palette)
    assert (known.class_names, known.palette) == (("road", "tree", "sky"), tuple(palette))
    assert known.mask(0)[1].tolist() == known[0][1][1].tolist() == [2] * 4 + [0] * 4
    assert known.mask(0)[0, 0] == 255
    assert matched(samples, samples.class_names, palette) is samples
    with pytest.raises(DataError, match="1 of the data's 2 classes are unknown to the weights: 'road'"):
        matched(samples, ["sky", "raod"], palette[:2])


def test_batches_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    samples = open_masks(folder(tmp_path, [f"train/{number}" for number in range(5)] + ["val/a"]))
    transform = TrainTransform(Preprocessing(), Augment(size=12, crop=(8, 8), turns=True, vflip=0.5))
    alone, helped = (
        list(EpochLoader(samples, transform, batch_size=2, seed=3, train=True, workers=workers)) for workers in (0, 2)
    )
    assert [batch.targets.shape for batch in alone] == [(2, 8, 8), (2, 8, 8), (1, 8, 8)]
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.sizes.tolist() == [[6, 8]] * len(one.indices)


def test_classes_json_may_lie_above(tmp_path: Path) -> None:
    folder(tmp_path / "inner", ["train/a"], classes=None)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    assert open_masks(tmp_path).class_names == ("sky", "road")
