"""No decoder takes more memory than the budget, whatever the width and height that a file announces."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data.budget import MAX_BYTES_VARIABLE, check_bytes
from vision_ssm.data.images import check_image, picture_in_memory, read_image
from vision_ssm.data.strips import open_strips
from vision_ssm.errors import ConfigError, DataError


def png(width: int, height: int, filling: int = 100) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(filling))) + chunk(b"IEND", b"")


def refused(path: Path, match: str, *, by_header: bool = True) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_image, *([check_image] if by_header else [])):
        with pytest.raises(DataError, match=match):
            read(path)
    with pytest.raises(DataError, match=match), open_strips(path) as opened:
        list(opened.bands)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_a_narrow_png_of_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 500_000_000))
    refused(path, rf"a\.png': decoding it would take 12,000,000,000 bytes.*{MAX_BYTES_VARIABLE}=12000000000")
    with Image.open(path) as image, pytest.raises(DataError, match="in memory: decoding it would take"):
        picture_in_memory(image)


def test_a_png_without_the_bytes_for_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 100_000_000))
    refused(path, r"a\.png': the file is truncated: 69 bytes cannot hold the 200,000,000 bytes")


@pytest.mark.parametrize("kind", ["tall", "wide"])
@pytest.mark.parametrize("compression", [None, "deflate", "packbits", "jpeg"])
def test_tiles_of_claimed_size(tmp_path: Path, kind: str, compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    path = tmp_path / "a.tif"
    pixels = np.zeros((32, 32, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(32, 32), compression=compression)
    tag = 323 if kind == "tall" else 322
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[tag].offset
    content = bytearray(path.read_bytes())
    content[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 2**31 - 16)
    path.write_bytes(content)
    if compression is None and kind == "tall":
        assert np.array_equal(np.asarray(read_image(path)), pixels)  # only the rows of the image are read
    else:
        refused(path, r"a\.tif'", by_header=compression is not None)


def test_formats_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm", "jp2", "npy", "avif"):
        path = tmp_path / f"a.{suffix}"
        if suffix == "npy":
            np.save(path, np.asarray(picture))
        else:
            picture.save(path)
        monkeypatch.setenv(MAX_BYTES_VARIABLE, "20000")  # less than its pixels
        with pytest.raises(DataError, match=rf"a\.{suffix}': decoding it would take .* over the limit of 20,000"):
            read_image(path)
        monkeypatch.setenv(MAX_BYTES_VARIABLE, "10000000")
        assert read_image(path).size == (64, 64)


def test_the_budget_follows_the_limit_of_pixels_and_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    check_bytes(16 * 2**31, 2**31)
    with pytest.raises(DataError, match="over the limit of 8,589,934,592"):
        check_bytes(2**34, 1000)
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "1000")
    with pytest.raises(DataError, match="over the limit of 1,000"):
        check_bytes(1001, 2**31)
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "8 GB")
    with pytest.raises(ConfigError, match=f"{MAX_BYTES_VARIABLE} must be a number of bytes, got '8 GB'"):
        check_bytes(1, 2**31)


def test_a_wrong_setting_is_no_failure_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path)
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "lots")
    with pytest.raises(ConfigError, match="must be a number of bytes"):
        read_image(path)
