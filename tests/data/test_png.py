"""PNG files: metadata beside the pixels does not matter, and the transparent colour is that of the file's depth."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data import strips_tiff
from vision_ssm.data.images import picture_in_memory, read_image
from vision_ssm.errors import DataError


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, rows: list[bytes], width: int, key: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    transparency = chunk(b"tRNS", key) if key else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + transparency + pixels + chunk(b"IEND", b"")


def both(path: Path) -> np.ndarray:
    whole = np.asarray(read_image(path))
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(picture_in_memory(image)), whole)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert np.array_equal(np.asarray(picture_in_memory(image)), whole)
    return whole


LARGE = b"x" * 3_000_000
METADATA = {
    "profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(LARGE)),
    "broken profile": chunk(b"iCCP", b"p\0\0junk"),
    "text": chunk(b"tEXt", b"a\0" + LARGE),
    "packed text": chunk(b"zTXt", b"a\0\0" + zlib.compress(LARGE)),
    "unicode text": chunk(b"iTXt", b"xmp\0\1\0\0\0" + zlib.compress(LARGE)),
    "plain unicode text": chunk(b"iTXt", b"xmp\0\0\0\0\0" + LARGE),
    "many texts": 70 * chunk(b"zTXt", b"a\0\0" + zlib.compress(LARGE[: 2**20])),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_any_size_does_not_matter(tmp_path: Path, kind: str, place: str) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    written = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(written, "PNG", exif=exif)
    content, at = written.getvalue(), 33 if place == "before" else -12
    path = tmp_path / "a.png"
    path.write_bytes(content[:at] + METADATA[kind] + content[at:])
    assert np.array_equal(np.asarray(read_image(path)), pixels[::-1, ::-1])
    if place == "after":  # what comes before the pixels keeps Pillow from opening the file
        assert np.array_equal(both(path), pixels[::-1, ::-1])


def test_the_orientation_in_a_text_is_kept(tmp_path: Path) -> None:
    packet = b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="3"/>'
    content = png(8, 0, [bytes([0, 100, 200])], 3)
    path = tmp_path / "a.png"
    path.write_bytes(content[:33] + METADATA["text"] + chunk(b"iTXt", packet) + content[33:])
    assert both(path)[0, :, 0].tolist() == [200, 100, 0]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_every_depth(tmp_path: Path, depth: int) -> None:
    top = 2**depth - 1
    path = tmp_path / "a.png"
    bits = "".join(f"{value:0{depth}b}" for value in (0, top, 0, top, top, 0, 0, 0))
    row = int(bits, 2).to_bytes(depth, "big")
    for key, expected in ((0, [255] * 8), (top, [0, 255, 0, 255, 255, 0, 0, 0])):
        path.write_bytes(png(depth, 0, [row], 8, struct.pack(">H", key)))
        assert both(path)[0, :, 0].tolist() == expected
    if depth > 1:  # a colour between black and white
        path.write_bytes(png(depth, 0, [row], 8, struct.pack(">H", 1)))
        assert both(path)[0, :, 0].tolist() == [0, 255, 0, 255, 255, 0, 0, 0]


def test_16_bit_colours_with_a_transparent_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagecodecs")
    colours = [(0, 0, 0), (1, 0, 0), (0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0x9ABC)]
    path = tmp_path / "a.png"
    row = struct.pack(">12H", *itertools.chain(*colours))
    dark, mixed = [0, 0, 0], [0x12, 0x56, 0x9A]
    for key, expected in (
        (colours[0], [[255] * 3, dark, mixed, mixed]),
        (colours[2], [dark, dark, [255] * 3, mixed]),
    ):
        path.write_bytes(png(16, 2, [row], 4, struct.pack(">3H", *key)))
        assert both(path)[0].tolist() == expected
    monkeypatch.setattr(strips_tiff, "_PACKAGES", ("no_such_package",))
    with pytest.raises(DataError, match=r"a\.png': 16-bit colours with a transparent one need pip install"):
        read_image(path)
