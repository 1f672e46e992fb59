"""Files of indices: every kind that is read gives the numbers that were written, and what cannot is refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data.stored import read_stored
from vision_ssm.errors import DataError

VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)


def png(path: Path, depth: int, colour: int, values: np.ndarray, palette: bytes = b"") -> Path:
    """Write a PNG of so many bits per sample: Pillow writes grey of 8 and 16 bits only."""
    per_byte = 8 // depth
    rows = b""
    for row in values:
        padded = np.pad(row, (0, -len(row) % per_byte)).reshape(-1, per_byte)
        shifts = np.arange(per_byte - 1, -1, -1) * depth
        rows += b"\0" + (padded << shifts).sum(axis=1).astype(np.uint8).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    content = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif"])
def test_a_palette_gives_indices_whatever_its_colours(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(VALUES)
    image.putpalette([200 - 7 * i for i in range(12) for _ in range(3)])
    image.save(tmp_path / f"mask.{suffix}")
    stored = read_stored(tmp_path / f"mask.{suffix}")
    assert stored.values.tolist() == VALUES.tolist()
    assert stored.palette[:12].tolist() == [[200 - 7 * i] * 3 for i in range(12)]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_values_stay(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 1, 2], [128, 254, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / f"mask.{suffix}")
    assert read_stored(tmp_path / f"mask.{suffix}").values.tolist() == values.tolist()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_stay(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 1, 256], [1000, 40000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"mask.{suffix}")
    read = read_stored(tmp_path / f"mask.{suffix}").values
    assert read.dtype == np.uint16
    assert read.tolist() == values.tolist()


def test_tiffs_are_read_in_every_exact_compression_and_byte_order(tmp_path: Path) -> None:
    for number, compression in enumerate(("tiff_lzw", "tiff_adobe_deflate", "packbits")):
        for values in (VALUES, VALUES.astype(np.uint16) * 1000):
            path = tmp_path / f"{number}_{values.dtype}.tif"
            Image.fromarray(values).save(path, compression=compression)
            assert read_stored(path).values.tolist() == values.tolist()
    header = struct.pack(">2sHIH", b"MM", 42, 8, 9)
    tags = [(256, 3, 4), (257, 3, 3), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1)]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in [*tags, (278, 3, 3), (279, 4, 24)]
    )
    big = VALUES.astype(">u2") * 257
    (tmp_path / "big.tif").write_bytes(header + entries + bytes(4) + big.tobytes())
    assert read_stored(tmp_path / "big.tif").values.tolist() == big.tolist()


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("colour", [0, 3], ids=["grey", "palette"])
def test_samples_of_few_bits_are_not_spread(tmp_path: Path, depth: int, colour: int) -> None:
    values = (np.arange(15).reshape(3, 5) * 7) % 2**depth
    palette = bytes(range(100, 100 + 3 * 2**depth)) if colour == 3 else b""
    assert read_stored(png(tmp_path / "mask.png", depth, colour, values, palette)).values.tolist() == values.tolist()


def test_colours_come_as_they_are(tmp_path: Path) -> None:
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    opaque = np.dstack([colours, np.full((2, 4), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "rgba.png")
    assert read_stored(tmp_path / "rgb.png").values.tolist() == colours.tolist()
    assert read_stored(tmp_path / "rgba.png").values.tolist() == colours.tolist()


def test_a_mask_with_an_orientation_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(VALUES).save(tmp_path / "mask.png", exif=exif)
    assert read_stored(tmp_path / "mask.png").values.tolist() == np.rot90(VALUES, -1).tolist()


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("a.jpg", Image.fromarray(VALUES), "a JPEG file, which changes values"),
        ("a.webp", Image.fromarray(VALUES), "a WEBP file, which changes values"),
        ("a.png", Image.fromarray(np.zeros((2, 2, 4), np.uint8)), "transparent"),
        ("a.tif", Image.fromarray(np.zeros((2, 2), np.float32)), "whole numbers of 8 or 16 bits"),
        ("a.tif", Image.fromarray(np.zeros((2, 2), np.int32)), "whole numbers of 8 or 16 bits"),
        ("a.pgm", Image.fromarray(VALUES), "expected a file of PNG, TIFF, BMP, GIF"),
    ],
)
def test_what_loses_or_hides_numbers_is_refused(tmp_path: Path, name: str, image: Image.Image, reason: str) -> None:
    image.save(tmp_path / name)
    with pytest.raises(DataError, match=reason) as caught:
        read_stored(tmp_path / name)
    assert name in str(caught.value)


def test_a_jpeg_called_png_is_still_refused(tmp_path: Path) -> None:
    Image.fromarray(VALUES).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(DataError, match="JPEG"):
        read_stored(tmp_path / "mask.png")


def test_a_tiff_compressed_with_loss_is_refused(tmp_path: Path) -> None:
    Image.fromarray(VALUES).save(tmp_path / "mask.tif", compression="jpeg")
    with pytest.raises(DataError, match=r"mask\.tif.*compressed as JPEG"):
        read_stored(tmp_path / "mask.tif")


def test_damage_and_size_are_told_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png(tmp_path / "whole.png", 8, 0, VALUES).read_bytes()[:45])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_stored(tmp_path / "cut.png")
    with pytest.raises(DataError, match="12 pixels, over the limit of 11"):
        read_stored(tmp_path / "whole.png", max_pixels=11)
