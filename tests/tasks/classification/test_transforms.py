"""Transforms: timm's numbers where timm defines them, and the records that describe them."""

from __future__ import annotations

import contextlib
import json
import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.classification.settings import AugmentSettings
from vision_ssm.tasks.classification.transforms import build_eval_transform, build_train_transform


def seeded(seed: int) -> contextlib.nullcontext[None]:
    """Seed the generators that transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return contextlib.nullcontext()


SMALL = Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
def test_evaluation_equals_timm(crop_mode: str, size: tuple[int, int]) -> None:
    record = Preprocessing(input_size=(3, *size), crop_mode=crop_mode)
    theirs = timm.data.create_transform(
        record.input_size,
        interpolation="bicubic",
        crop_pct=0.875,
        crop_mode=crop_mode,
        mean=record.mean,
        std=record.std,
    )
    for image in (noise(300, 200), noise(90, 500)):
        ours = build_eval_transform(record)(image)
        assert ours.dtype == torch.float32
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", None])
def test_imagenet_training_equals_timm(policy: str | None) -> None:
    augmentation = AugmentSettings(auto_augment=policy, color_jitter=0.3, erasing=0.9)
    theirs = timm.data.create_transform(
        224,
        is_training=True,
        auto_augment=policy,
        color_jitter=0.3,
        interpolation="bicubic",
        re_prob=0.9,
        re_mode="pixel",
    )
    ours = build_train_transform(Preprocessing(), augmentation)
    compared = 0
    for seed in range(8):
        with seeded(seed):
            try:
                expected = theirs(noise(256, 256))
            except ValueError as error:  # see test_zero_bits_of_posterisation_is_black
                assert "bits" in str(error)
                continue
        with seeded(seed):
            torch.testing.assert_close(ours(noise(256, 256)), expected, rtol=0, atol=1e-5)
        compared += 1
    assert compared >= 5


def test_zero_bits_of_posterisation_is_black() -> None:
    transform = build_train_transform(SMALL, AugmentSettings(auto_augment="rand-m10-n1-inc1", hflip=0.0))
    policy = next(step for step in transform.transforms if hasattr(step, "ops"))
    policy.ops = [op for op in policy.ops if "Posterize" in op.name]
    policy.ops[0].prob = 1.0
    policy.choice_weights = None
    assert transform(noise(32, 32)).unique().tolist() == [-1.0]


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 50), (2000, 10)])
def test_any_shape_of_image_gives_the_input_size(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 10, 30))
    for record in (Preprocessing(input_size=(3, 64, 96)), SMALL):
        for transform in (build_eval_transform(record), build_train_transform(record, AugmentSettings())):
            assert transform(image).shape == record.input_size


def test_very_long_images_keep_their_centre() -> None:
    pixels = np.zeros((4, 4000, 3), dtype=np.uint8)
    pixels[:, 1998:2002] = 255
    record = Preprocessing(input_size=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0, interpolation="nearest")
    assert build_eval_transform(record)(Image.fromarray(pixels)).min() == 1.0


def test_small_images_are_shifted_not_rescaled() -> None:
    y, x = np.mgrid[:32, :32]
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    record = Preprocessing(input_size=(3, 32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    transform = build_train_transform(record, AugmentSettings(hflip=0.0, crop_padding=4))
    seen = set()
    for seed in range(200):
        with seeded(seed):
            columns, rows, _ = (255 * transform(image)).round().int()
        right, down = int(columns[0, 16]) - 16, int(rows[16, 0]) - 16
        seen.add((right, down))
        expected = (np.arange(32) + right).tolist()
        reflected = [31 - abs(31 - abs(position)) for position in expected]
        assert columns[5].tolist() == reflected
    assert {right for right, _ in seen} == {down for _, down in seen} == set(range(-4, 5))


def test_digits_are_never_mirrored_unless_asked() -> None:
    left = np.zeros((32, 32, 3), dtype=np.uint8)
    left[:, :4] = 255
    image = Image.fromarray(left)

    def mirrored(mirror_safe: bool, hflip: float | None) -> int:
        record = AugmentSettings(crop="none", hflip=hflip)
        transform = build_train_transform(SMALL, record, mirror_safe=mirror_safe)
        torch.manual_seed(0)
        return sum(int(transform(image)[0, 0, 0] < 0) for _ in range(60))

    assert mirrored(False, None) == 0
    assert 15 < mirrored(True, None) < 45
    assert mirrored(False, 1.0) == 60


def test_crop_kinds() -> None:
    def names(record: Preprocessing, crop: str) -> str:
        return str(build_train_transform(record, AugmentSettings(crop=crop)))

    assert "RandomResizedCrop" in names(Preprocessing(), "auto")
    assert "RandomResizedCrop" in names(SMALL, "resized")
    assert "RandomResizedCrop" not in names(SMALL, "auto")
    with seeded(0):
        plain = build_train_transform(SMALL, AugmentSettings(crop="none", hflip=0.0))(noise(40, 50))
    torch.testing.assert_close(plain, build_eval_transform(SMALL)(noise(40, 50)))


def test_records_survive_json() -> None:
    record = Preprocessing(input_size=(3, 128, 96), crop_pct=0.9, crop_mode="squash")
    assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.with_size(64).input_size == (3, 64, 64)
    assert record.with_size((10, 20)).input_size == (3, 10, 20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_size": (3, -8, 8)}, "at least 1 pixel"),
        ({"input_size": (3, 0, 8)}, "at least 1 pixel"),
        ({"input_size": (17, 8, 8)}, "1 to 16 channels"),
        ({"input_size": (8, 8)}, "three integers"),
        ({"input_size": (3, 8.5, 8)}, "three integers"),
        ({"mean": (0.5, 0.5)}, "mean must be 3 finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"crop_mode": "centre"}, "Did you mean 'center'"),
        ({"mena": (0, 0, 0)}, "unknown preprocessing field 'mena'. Did you mean 'mean'"),
    ],
)
def test_preprocessing_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing.from_dict(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hflip": 1.5}, r"hflip must be at least 0 and at most 1, got 1\.5"),
        ({"erasing": -0.1}, "at least 0 and at most 1"),
        ({"scale": (0.5, 0.1)}, r"augment\.scale must be \[smallest, largest\]"),
        ({"ratio": (0.0, 1.0)}, r"ratio must be above 0, got \[0\.0, 1\.0\]"),
        ({"crop": "padd"}, "Did you mean 'padded'"),
        ({"erasing_mode": "pixels"}, "Did you mean 'pixel'"),
        ({"crop_padding": -1}, "at least 0"),
        ({"erasing_count": 0}, "at least 1"),
    ],
)
def test_augmentation_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentSettings(**fields)


def test_records_need_no_torch() -> None:
    import subprocess
    import sys

    check = "import sys, vision_ssm.data.preprocessing; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
