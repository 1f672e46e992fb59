"""Boxes and masks go where the pixels go: every rectangle has a colour, and is looked for by it afterwards."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.detection.boards import COLOURS, SCENE, Rect, picture, segmentation
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.detection.sources import Objects
from vision_ssm.tasks.detection.transforms import Augment, EvalTransform, Sides, TrainTransform

GOLDEN = Path(__file__).parents[2] / "golden"
PLAIN = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))


def objects(rects: tuple[Rect, ...], height: int, width: int, kind: str = "packed") -> Objects:
    boxes = torch.tensor([rect.box for rect in rects], dtype=torch.float64).view(-1, 4)
    labels = torch.tensor([rect.label for rect in rects], dtype=torch.int64)
    outlines = [segmentation(kind, rect.box, height, width) for rect in rects]
    crowd = torch.zeros(len(rects), dtype=torch.bool)
    return Objects(boxes, labels, crowd, (boxes[:, 2:] - boxes[:, :2]).prod(1), outlines, (height, width))


def moved(rects: tuple[Rect, ...], seed: int, sides: Sides, size: tuple[int, int] = (30, 40), **changes: Any) -> Any:
    random.seed(seed)
    transform = TrainTransform(PLAIN, sides, Augment(**{"masks": True, "crop": (32, 32), **changes}))
    return transform(picture(*size, rects), objects(rects, *size, "packed" if seed % 2 else "polygons"))


def pixels_of(image: torch.Tensor, label: int) -> np.ndarray[Any, Any]:
    """Pixels that are nearer to the colour of a class than to anything else."""
    colour = torch.tensor(COLOURS[label]).view(3, 1, 1) / 255
    return ((image - colour).abs().amax(0) < 0.2).numpy()


WAYS = {
    "jitter": (Sides(), {"jitter": (0.6, 2.5), "vflip": 0.5}),
    "jitter of a size": (Sides(40, 60), {"jitter": (0.5, 2.0), "turns": True}),
    "choice": (Sides(None, None, True), {"resize": "choice", "short_sides": (48, 90), "turns": True}),
    "crop branch": (Sides(), {"resize": "choice", "short_sides": (600, 700), "crop_branch": True}),
    "fixed": (Sides(45, 50), {"resize": "fixed", "vflip": 0.5, "turns": True}),
}


@pytest.mark.parametrize("way", WAYS)
def test_boxes_and_masks_follow_the_pixels(way: str) -> None:
    sides, changes = WAYS[way]
    seen = 0
    for seed in range(4 if way == "crop branch" else 24):
        image, target = moved(SCENE, seed, sides, **changes)
        assert target["masks"].shape == (len(target["boxes"]), *image.shape[1:])
        for box, label, mask in zip(target["boxes"], target["labels"].tolist(), target["masks"].numpy(), strict=True):
            known = pixels_of(image, label)
            scale = max(image.shape[1] / 30, image.shape[2] / 30, 2.5)
            border = np.logical_xor(known, mask).sum()  # colours are mixed along the edges
            assert border <= 4 * scale * (mask.any(0).sum() + mask.any(1).sum())
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            if min(mask.any(0).sum(), mask.any(1).sum()) > 4 * scale:
                assert (known & mask).sum() > 0.5 * mask.sum()
            seen += 1
    assert seen > 4


def test_without_masks_boxes_keep_their_fractions_and_are_cut_at_the_edges() -> None:
    rects = (Rect(0, (5, 5, 11, 12)),)
    random.seed(0)
    transform = TrainTransform(PLAIN, Sides(), Augment(jitter=(1.5, 1.5), crop=(999, 999), hflip=1.0, vflip=1.0))
    image, target = transform(picture(30, 40, rects), objects(rects, 30, 40))
    assert image.shape == (3, 45, 60)
    assert set(target) == {"boxes", "labels"}
    assert target["boxes"].tolist() == [[60 - 16.5, 45 - 18, 60 - 7.5, 45 - 7.5]]
    assert target["boxes"].dtype == torch.float32
    for seed in range(30):
        random.seed(seed)
        image, target = TrainTransform(PLAIN, Sides(), Augment(jitter=(1, 1), crop=(9, 9)))(
            picture(30, 40, rects), objects(rects, 30, 40)
        )
        for box in target["boxes"]:
            assert bool((box >= 0).all() and (box <= 9).all() and (box[2:] - box[:2] >= 1).all())


def test_a_crop_may_be_placed_over_an_object() -> None:
    rects = (Rect(1, (390, 280, 396, 290)),)
    hits = 0
    for seed in range(10):
        _, target = moved(rects, seed, Sides(), (300, 400), jitter=(1, 1), on_objects=1.0, hflip=0.0)
        hits += len(target["boxes"])
    assert hits == 10


def test_crowds_and_specks_are_left_out_and_nothing_is_fine() -> None:
    given = replace(objects(SCENE, 30, 40), crowd=torch.tensor([True, False]))
    transform = TrainTransform(PLAIN, Sides(), Augment(jitter=(1, 1), crop=(99, 99), masks=True))
    assert transform(picture(30, 40, SCENE), given)[1]["labels"].tolist() == [1]
    small = TrainTransform(PLAIN, Sides(), Augment(jitter=(0.05, 0.05), crop=(99, 99), masks=True))
    for rects in (SCENE, ()):
        image, target = small(picture(30, 40, rects), objects(rects, 30, 40))
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, *image.shape[1:])


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)])
def test_an_image_of_one_row_and_a_box_of_one_pixel(size: tuple[int, int]) -> None:
    rects = (Rect(0, (0, 0, 1, 1)),)
    transform = TrainTransform(PLAIN, Sides(), Augment(jitter=(1, 1), crop=(64, 64), masks=True, turns=True))
    for seed in range(4):
        random.seed(seed)
        image, target = transform(picture(*size, rects), objects(rects, *size))
        assert sorted(image.shape[1:]) == sorted(size)
        assert target["masks"].sum() == 1


def test_evaluation_resizes_the_image_alone() -> None:
    given = objects(SCENE, 30, 40)
    image, target = EvalTransform(PLAIN, Sides(60, 100))(picture(30, 40, SCENE), given)
    assert image.shape == (3, 60, 80)
    assert target is given
    assert EvalTransform(PLAIN, Sides())(picture(30, 40, SCENE), None)[0].shape == (3, 30, 40)


def test_a_raw_image_becomes_the_published_input() -> None:
    """Of the model in tests/golden/dense, recorded through mmdetection's own preprocessor; it pads, here the model."""
    golden = np.load(GOLDEN / "dense" / "vmamba_tiny_mask_rcnn_raw_300x400.npz")
    pixels = np.random.RandomState(3).randint(0, 256, (300, 400, 3)).astype(np.uint8)[..., ::-1]  # stored as BGR
    own, _ = EvalTransform(Preprocessing(), Sides())(Image.fromarray(np.ascontiguousarray(pixels)), None)
    padded = torch.nn.functional.pad(own, (0, 16, 0, 20))
    assert list(padded.shape) == golden["input_shape"].tolist()[1:]
    rows, columns = golden["input_pos"].T
    np.testing.assert_allclose(padded[:, rows, columns].T.numpy(), golden["input_probe"], atol=1e-5)


def test_sizes_are_the_published_ones() -> None:
    assert Sides(800, 1333).fitted(480, 640) == (800, 1067)
    assert Sides(800).fitted(480, 640) == (800, 1067)
    assert Sides(800, 1333).fitted(400, 1000) == (533, 1333)
    assert Sides(1024, 1024).fitted(480, 640) == (768, 1024)
    assert Sides(1024, 1024).fitted(480, 640, 0.1) == (77, 102)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="jitter must be"):
        Augment(jitter=(2, 1))
    with pytest.raises(ConfigError, match=r"vflip must lie in 0..1, got 2"):
        Augment(vflip=2)
    with pytest.raises(ConfigError, match="resize must be jitter, choice or fixed, got 'crop'"):
        Augment(resize="crop")
