"""Masks as labels: indices as they are, colours by exact match, and index files that show their colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tasks.segmentation.scenes import mask
from vision_ssm.errors import DataError
from vision_ssm.tasks.segmentation.masks import read_mask, write_mask

COLOURS = {(0, 0, 0): 0, (255, 0, 0): 7, (0, 0, 1): 300}


def test_colours_become_the_numbers_they_stand_for(tmp_path: Path) -> None:
    path = mask(tmp_path / "m.png", np.array([[[255, 0, 0], [0, 0, 0]], [[0, 0, 1], [255, 0, 0]]], np.uint8))
    assert read_mask(path, colours=COLOURS).tolist() == [[7, 0], [300, 7]]


def test_an_unknown_colour_is_named_with_its_file(tmp_path: Path) -> None:
    path = mask(tmp_path / "edges.png", np.array([[[255, 0, 0], [128, 1, 2]], [[128, 1, 2], [0, 0, 2]]], np.uint8))
    with pytest.raises(DataError, match=r"edges\.png.* 2 colours.* on 3 pixels: \[128, 1, 2\], \[0, 0, 2\]"):
        read_mask(path, colours=COLOURS)


def test_colours_without_a_list_are_refused(tmp_path: Path) -> None:
    path = mask(tmp_path / "m.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"m\.png.*nothing says what they mean.*classes\.json"):
        read_mask(path)


def test_a_palette_is_read_by_its_indices_even_if_colours_are_listed(tmp_path: Path) -> None:
    write_mask(tmp_path / "m.png", np.array([[0, 1, 255]]), [(255, 0, 0), (9, 9, 9)])
    assert read_mask(tmp_path / "m.png", colours={(0, 0, 0): 0, (255, 0, 0): 1}).tolist() == [[0, 1, 255]]


def test_a_reordered_palette_is_refused(tmp_path: Path) -> None:
    colours = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2}
    write_mask(tmp_path / "right.png", np.array([[0, 1, 255]]), list(colours))
    assert read_mask(tmp_path / "right.png", colours=colours).tolist() == [[0, 1, 255]]
    write_mask(tmp_path / "m.png", np.array([[0, 1, 1]]), [(0, 0, 0), (0, 255, 0), (255, 0, 0)])
    with pytest.raises(DataError, match=r"m\.png' contradicts itself: pixels of index 1 .* stands for 2"):
        read_mask(tmp_path / "m.png", colours=colours)


def test_a_jpeg_mask_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"street\.jpg.*changes values"):
        read_mask(mask(tmp_path / "street.jpg", np.zeros((4, 4), np.uint8)))


def test_what_is_no_picture_at_all_says_which_formats_masks_have(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"cannot read mask '.*m\.png': expected a PNG, TIFF, BMP or GIF file\.$"):
        read_mask(tmp_path / "m.png")


def test_a_written_mask_holds_indices_and_shows_colours(tmp_path: Path) -> None:
    classes, palette = np.array([[0, 2], [1, 255]]), [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    write_mask(tmp_path / "new" / "m.png", classes, palette)
    with Image.open(tmp_path / "new" / "m.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == classes.tolist()
        shown = np.asarray(image.convert("RGB"))
    assert shown.tolist() == [[[10, 20, 30], [70, 80, 90]], [[40, 50, 60], [0, 0, 0]]]
    assert read_mask(tmp_path / "new" / "m.png").tolist() == classes.tolist()
