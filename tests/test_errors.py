"""A notice points at the line of the user."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image

import vision_ssm
from vision_ssm.errors import VisionSSMNotice


def test_a_notice_points_at_the_line_that_asked(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    with pytest.warns(VisionSSMNotice, match=r"1 images in .*1 \.txt") as told:
        vision_ssm.predict(images=tmp_path)
    assert [warning.filename for warning in told] == [__file__]


def test_a_notice_is_told_once_by_an_evaluation(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (32, 32)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cat" / "a.txt").touch()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        vision_ssm.evaluate("vim_nano_cifar10", tmp_path, val_fraction=0.2)
    assert len([warning for warning in told if warning.category is VisionSSMNotice]) == 1
