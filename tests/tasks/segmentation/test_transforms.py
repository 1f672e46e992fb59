"""Image and mask move together, to the published sizes, and every random part does what its number says."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.fitting import fitted_size
from vision_ssm.tasks.segmentation.transforms import Augment, EvalTransform, TrainTransform

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
"""Leaves pixels in 0..255."""

STILL = {"scale": (1.0, 1.0), "hflip": 0.0, "distortion": None, "most_of_one_class": 1.0}
"""Nothing random but where the crop lies."""


def scene(height: int = 40, width: int = 60) -> tuple[Image.Image, tv_tensors.Mask]:
    """A picture whose red is the class of the pixel, in blocks, so that both can be compared anywhere."""
    classes = np.random.default_rng(0).integers(0, 200, (height // 10, width // 10)).astype(np.uint8)
    mask = np.kron(classes, np.ones((10, 10), np.uint8))
    return Image.fromarray(np.dstack([mask, mask // 2, 255 - mask])), tv_tensors.Mask(torch.from_numpy(mask))


def transformed(
    augment: Augment, height: int = 40, width: int = 60, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    random.seed(seed)
    return TrainTransform(PLAIN, augment)(*scene(height, width))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "moves", [{}, {"hflip": 1.0}, {"vflip": 1.0}, {"turns": True}, {"hflip": 0.5, "vflip": 0.5, "turns": True}]
)
def test_the_mask_follows_its_image(seed: int, moves: dict[str, object]) -> None:
    image, mask = transformed(Augment(size=40, crop=(32, 32), **{**STILL, **moves}), seed=seed)
    assert (image.dtype, image.shape, mask.dtype, mask.shape) == (torch.float32, (3, 32, 32), torch.int64, (32, 32))
    assert type(image) is type(mask) is torch.Tensor
    torch.testing.assert_close(image[0], mask.float(), atol=1e-3, rtol=0)
    assert len(mask.unique()) > 1


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_mask_follows_when_resized(factor: float) -> None:
    image, mask = transformed(Augment(size=40, crop=(200, 200), **{**STILL, "scale": (factor, factor)}))
    height, width = round(40 * factor), round(60 * factor)
    assert (mask[:height, :width] != 255).all()
    # Away from the edges of blocks, bilinear and nearest agree.
    inner = torch.zeros(height, width, dtype=torch.bool)
    step, margin = round(10 * factor), round(3 * factor)
    for top in range(0, height, step):
        for left in range(0, width, step):
            inner[top + margin : top + step - margin, left + margin : left + step - margin] = True
    torch.testing.assert_close(
        image[0, :height, :width][inner], mask[:height, :width][inner].float(), atol=1.01, rtol=0
    )


def test_flips_mirror() -> None:
    still, _ = transformed(Augment(size=40, crop=(40, 60), **STILL))
    across, _ = transformed(Augment(size=40, crop=(40, 60), **{**STILL, "hflip": 1.0}))
    down, _ = transformed(Augment(size=40, crop=(40, 60), **{**STILL, "vflip": 1.0}))
    assert torch.equal(across, still.flip(2))
    assert torch.equal(down, still.flip(1))


def test_turns_are_all_four_right_angles() -> None:
    still, _ = transformed(Augment(size=40, crop=(40, 40), **STILL), 40, 40)
    augment = Augment(size=40, crop=(40, 40), turns=True, **STILL)
    seen = set()
    for seed in range(40):
        image, _ = transformed(augment, 40, 40, seed)
        (turns,) = [k for k in range(4) if torch.equal(image, still.rot90(k, (1, 2)))]
        seen.add(turns)
    assert seen == {0, 1, 2, 3}


def test_an_image_smaller_than_the_crop_is_padded_below_and_right() -> None:
    preprocessing = Preprocessing()
    random.seed(0)
    image, mask = TrainTransform(preprocessing, Augment(size=40, crop=(64, 50), **STILL))(*scene())
    assert (image.shape, mask.shape) == ((3, 64, 50), (64, 50))
    assert (mask[:40] != 255).all()
    assert (mask[40:] == 255).all()
    assert (image[:, 40:] == 0).all()
    assert (image[:, :40] != 0).any(0).all()


def test_normalisation_is_that_of_the_weights() -> None:
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    random.seed(3)
    image, _ = TrainTransform(preprocessing, Augment(size=40, crop=(32, 32), **STILL))(*scene())
    raw, _ = transformed(Augment(size=40, crop=(32, 32), **STILL), seed=3)
    expected = (raw / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[:, None, None]
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)


def test_a_crop_of_almost_one_class_is_tried_again() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[90:] = 1  # one crop in ten has enough of it
    picture, target = Image.new("RGB", (100, 100)), tv_tensors.Mask(torch.from_numpy(mask))
    shares = {}
    for limit in (1.0, 0.75):
        augment = Augment(size=100, crop=(20, 20), **{**STILL, "most_of_one_class": limit})
        random.seed(0)
        crops = [TrainTransform(PLAIN, augment)(picture, target)[1] for _ in range(200)]
        shares[limit] = np.mean([float((crop == 1).float().mean()) >= 0.25 for crop in crops])
    assert shares[1.0] < 0.25
    assert shares[0.75] > 0.45


def test_pixels_that_do_not_count_are_no_class_of_a_crop() -> None:
    mask = np.full((100, 100), 255, np.uint8)
    mask[:50, ::2], mask[:50, 1::2] = 0, 1
    augment = Augment(size=100, crop=(10, 10), **{**STILL, "most_of_one_class": 0.75})
    random.seed(0)
    transform = TrainTransform(PLAIN, augment)
    crops = [transform(Image.new("RGB", (100, 100)), tv_tensors.Mask(torch.from_numpy(mask)))[1] for _ in range(50)]
    assert all((crop != 255).any() for crop in crops)


@pytest.mark.parametrize("place", [(0, 0), (99, 99), (57, 31)], ids=["corner", "last corner", "inside"])
def test_crops_over_classes_see_a_rare_one_as_often_as_a_common_one(place: tuple[int, int]) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 50:], mask[40:45, :], mask[place] = 1, 255, 7
    transform = TrainTransform(PLAIN, Augment(size=100, crop=(20, 30), **{**STILL, "on_classes": 1.0}))
    picture, target = Image.new("RGB", (100, 100)), tv_tensors.Mask(torch.from_numpy(mask))
    random.seed(0)
    crops = [transform(picture, target)[1] for _ in range(300)]
    seen = [crop for crop in crops if (crop == 7).any()]
    assert 0.26 < len(seen) / 300 < 0.55  # one in three, and some of the crops over its neighbours
    if place == (57, 31):  # anywhere in the crop, not only in its middle
        rows = [int((crop == 7).nonzero()[0, 0]) for crop in seen]
        assert min(rows) < 4
        assert max(rows) > 15


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("value", [255, 3])
def test_masks_of_nothing_or_one_class_are_cut_all_the_same(value: int, share: float) -> None:
    mask = tv_tensors.Mask(torch.full((40, 60), value, dtype=torch.uint8))
    _, target = TrainTransform(PLAIN, Augment(size=40, crop=(16, 16), on_classes=share))(
        Image.new("RGB", (60, 40)), mask
    )
    assert target.unique().tolist() == [value]


def test_the_same_seed_gives_the_same_sample() -> None:
    augment = Augment(size=40, crop=(32, 32), turns=True, vflip=0.5)
    transform = pickle.loads(pickle.dumps(TrainTransform(PLAIN, augment)))
    first, second = transformed(augment, seed=5), transformed(augment, seed=6)
    random.seed(5)
    again = transform(*scene())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((360, 480), (512, 683)),
        ((480, 360), (683, 512)),
        ((100, 1000), (205, 2048)),  # the longer side decides
        ((1, 10000), (1, 2048)),
        ((512, 512), (512, 512)),
        ((333, 500), (512, 769)),  # 500 * 512 / 333 + 0.5 = 769.27
    ],
)
def test_sizes_are_the_published_ones(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fitted_size(*size, 512, 2048) == fitted


def test_evaluation_resizes_the_image_and_leaves_the_mask() -> None:
    image, mask = EvalTransform(PLAIN, 20)(*scene())
    assert (image.shape, mask.shape, mask.dtype) == ((3, 20, 30), (40, 60), torch.int64)
    assert torch.equal(mask, scene()[1].long())
    # Half the size without antialias: the mean of the four pixels in the middle of which each new one lies.
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(np.array(scene()[0])).permute(2, 0, 1).float(), 2)
    torch.testing.assert_close(image, expected, atol=0.51, rtol=0)


def test_at_its_own_size_an_image_is_only_normalised() -> None:
    image, mask = EvalTransform(PLAIN, None)(scene()[0], None)
    torch.testing.assert_close(image[0], scene()[1].float(), atol=1e-3, rtol=0)
    assert mask is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"size": 0}, "at least 1 pixel"),
        ({"crop": (0, 5)}, "at least 1 pixel"),
        ({"scale": (2.0, 1.0)}, "scale must be"),
        ({"hflip": 1.5}, "hflip must lie in 0..1"),
        ({"most_of_one_class": -0.1}, "most_of_one_class must lie"),
        ({"on_classes": 1.1}, "on_classes must lie"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Augment(**wrong)
