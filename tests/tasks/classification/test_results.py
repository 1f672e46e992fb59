from __future__ import annotations

import numpy as np
from PIL import Image

from vision_ssm.tasks.classification.results import Classes


def test_the_text_below_a_tiny_image_is_whole() -> None:
    image = Image.new("RGB", (8, 4), "navy")
    drawn = np.asarray(Classes((("a class with a long name", 0.5),)).draw(image))
    assert (drawn[:64, :128] == (0, 0, 128)).all()
    ink = (drawn[64:] < 128).any(axis=(0, 2))
    assert ink[:20].any()
    assert not ink[-3:].any()
    assert ink.nonzero()[0].max() > 128


def test_a_large_image_keeps_its_pixels() -> None:
    image = Image.new("RGB", (400, 300), "navy")
    drawn = Classes((("cat", 0.5),)).draw(image)
    assert (drawn.width, drawn.crop((0, 0, 400, 300)).tobytes()) == (400, image.tobytes())
