"""Rows of BMP and PNM files, read from their place."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data.images import read_image
from vision_ssm.errors import DataError


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], axis=2).astype(np.uint8))


@pytest.mark.parametrize("top", [1, 100, 255, 256, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_pnm_is_scaled_by_its_declared_white(tmp_path: Path, kind: bytes, top: int) -> None:
    values = np.linspace(0, top, 24).astype(">u2" if top > 255 else np.uint8)
    shape = (4, 6) if kind == b"P5" else (2, 4, 3)
    path = tmp_path / "a.pnm"
    header = b"%s # white is the third number\n%d %d\n%d\n" % (kind, shape[1], shape[0], top)
    path.write_bytes(header + values.tobytes())
    expected = values.reshape(shape).astype(float) * 255 / top
    found = np.asarray(read_image(path))[..., : 1 if kind == b"P5" else 3].reshape(shape)
    assert np.abs(found - expected).max() <= 0.5
    path.write_bytes(header + values.tobytes()[:-1])
    with pytest.raises(DataError, match="the file is truncated"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_rows_go_up_or_down(tmp_path: Path, mode: str) -> None:
    image = gradient(13, 9).quantize(16) if mode == "P" else gradient(13, 9).convert(mode)
    path = tmp_path / "a.bmp"
    image.save(path)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    content = bytearray(path.read_bytes())
    content[22:26] = struct.pack("<i", -9)
    path.write_bytes(content)
    assert np.array_equal(np.asarray(read_image(path)), expected[::-1])
