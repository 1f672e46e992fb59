"""Every kind of TIFF is scaled by what its tags say, or refused: with the extra or not, as a file and in memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data import strips_tiff
from vision_ssm.data.images import check_image, picture_in_memory, read_image
from vision_ssm.data.strips import open_strips
from vision_ssm.errors import DataError

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

HEIGHT, WIDTH = 37, 53


def in_strips(path: Path) -> np.ndarray[Any, Any]:
    with open_strips(path) as opened:
        return np.concatenate(list(opened.bands))


def opened_by_pillow(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(picture_in_memory(image))


def loaded_by_pillow(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        image.load()
        return np.asarray(picture_in_memory(image))


DOORS = {
    "whole": lambda path: np.asarray(read_image(path)),
    "strips": in_strips,
    "opened": opened_by_pillow,
    "loaded": loaded_by_pillow,
}


def truth(samples: np.ndarray[Any, Any], bits: int, photometric: str) -> np.ndarray[Any, Any]:
    scaled = samples.astype(float) * 255 / (2**bits - 1)
    return 255 - scaled if photometric == "miniswhite" else scaled


@pytest.mark.parametrize("extra", [True, False], ids=["tifffile", "no tifffile"])
@pytest.mark.parametrize(
    ("bits", "photometric"), itertools.product((1, 2, 4, 8, 10, 12, 16), ("minisblack", "miniswhite"))
)
def test_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, photometric: str, extra: bool) -> None:
    """Right within the rounding, or refused; with the extra always right from files."""
    if not extra:
        monkeypatch.setattr(strips_tiff, "missing_packages", lambda: ["tifffile"])
    ramp = (np.arange(HEIGHT * WIDTH) * (2**bits - 1) // (HEIGHT * WIDTH - 1)).reshape(HEIGHT, WIDTH)
    expected = truth(ramp, bits, photometric)
    whole_bytes = bits in (8, 16)  # tifffile compresses only those, and writes others wrongly in the big-endian order
    for compression, order in itertools.product((None, "deflate")[: 1 + whole_bytes], "<>"[: 1 + whole_bytes]):
        path = tmp_path / "a.tif"
        dtype = np.uint8 if bits <= 8 else np.uint16
        tifffile.imwrite(
            path,
            ramp.astype(dtype),
            photometric=photometric,
            bitspersample=bits,
            compression=compression,
            byteorder=order,
            rowsperstrip=8,
        )
        for door, read in DOORS.items():
            try:
                found = read(path)
            except (DataError, OSError) as error:
                assert isinstance(error, DataError) or door in ("opened", "loaded")  # Pillow's own refusal to open it
                assert door in ("opened", "loaded") or (not extra and compression), (door, compression, order, error)
                continue
            assert np.abs(found - expected[..., None]).max() <= 1, (door, compression, order)


@pytest.mark.parametrize("extra", [True, False], ids=["tifffile", "no tifffile"])
@pytest.mark.parametrize("samples", [3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, samples: int, extra: bool) -> None:
    if not extra:
        monkeypatch.setattr(strips_tiff, "missing_packages", lambda: ["tifffile"])
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels = np.random.default_rng(0).integers(0, 2**bits, (HEIGHT, WIDTH, samples)).astype(dtype)
    pixels[..., 3:] = 2**bits - 1
    expected = truth(pixels[..., :3], bits, "rgb")
    layouts: tuple[dict[str, Any], ...] = ({"tile": (16, 32)}, {"rowsperstrip": 5})
    for compression, planar, order, layout in itertools.product((None, "lzw"), ("contig", "separate"), "<>", layouts):
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path,
            np.moveaxis(pixels, 2, 0) if planar == "separate" else pixels,
            photometric="rgb",
            planarconfig=planar,
            compression=compression,
            byteorder=order,
            extrasamples=["unassalpha"] * (samples - 3),
            **layout,
        )
        for door, read in DOORS.items():
            try:
                found = read(path)
            except (DataError, OSError) as error:
                assert isinstance(error, DataError)
                assert door == "loaded" or (not extra and compression), (door, compression, planar, order, error)
                continue
            assert np.abs(found - expected).max() <= 1, (door, compression, planar, order, layout)


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_alpha_and_further_samples(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels = np.zeros((4, 6, 2), dtype)
    pixels[:, 3:, 1] = top
    path = tmp_path / "a.tif"
    for compression in (None, "deflate"):
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(path, pixels, extrasamples=["unassalpha"], compression=compression, **options)
        for read in (DOORS["whole"], DOORS["strips"]):
            assert read(path)[0, :, 0].tolist() == [255] * 3 + [0] * 3  # transparent over white
    five = np.full((4, 6, 5), top, dtype)
    five[..., :3] = 0
    five[:, :3, 3] = 0
    tifffile.imwrite(path, five, photometric="rgb", planarconfig="contig", extrasamples=["unassalpha", "unspecified"])
    for read in (DOORS["whole"], DOORS["strips"]):
        assert read(path)[0, :, 1].tolist() == [255] * 3 + [0] * 3


@pytest.mark.parametrize(
    ("dtype", "shape", "held"),
    [
        (np.int8, (8, 8), "one sample per pixel of 8-bit integers with sign"),
        (np.int16, (8, 8), "one sample per pixel of 16-bit integers with sign"),
        (np.uint32, (8, 8), "one sample per pixel of 32-bit integers"),
        (np.float16, (8, 8), "one sample per pixel of 16-bit floating-point numbers"),
        (np.float64, (8, 8, 3), "3 samples per pixel of 64-bit floating-point numbers"),
        (np.uint16, (8, 8, 5), "5 samples per pixel of 16-bit integers"),
    ],
)
def test_other_kinds_are_refused_with_what_they_hold(
    tmp_path: Path, dtype: type, shape: tuple[int, ...], held: str
) -> None:
    path = tmp_path / "a.tif"
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    tifffile.imwrite(
        path, np.zeros(shape, dtype), photometric=photometric, planarconfig="contig" if len(shape) > 2 else None
    )
    for read in (read_image, check_image, in_strips):
        with pytest.raises(DataError, match=rf"a\.tif'.*{held}"):
            read(path)


def test_what_pillow_has_decoded_wrongly_is_refused_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    planes = np.random.default_rng(0).integers(0, 65535, (3, 8, 8)).astype(np.uint16)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    with Image.open(path) as image:
        image.load()
        with pytest.raises(
            DataError, match=r"in memory: it holds 3 samples per pixel of 16-bit integers.*give the path"
        ):
            picture_in_memory(image)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_what_pillow_writes_is_read_as_it_was(tmp_path: Path, mode: str, compression: str | None) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = Image.fromarray(np.stack([x * 4, y * 6, x + y], axis=2).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((x * 1000).astype(np.uint16))
    else:
        image = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    path = tmp_path / "a.tif"
    image.save(path, compression=compression)
    if mode == "I;16":
        expected = np.repeat(((x * 1000 + 128) // 257)[..., None], 3, axis=2)
    else:
        expected = np.asarray(image.convert("RGB"))
    for read in DOORS.values():
        assert np.abs(read(path).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_by_tag_and_by_xmp(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    reference = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(reference, exif=exif)
    expected = np.asarray(read_image(reference))
    tagged, described = tmp_path / "tag.tif", tmp_path / "xmp.tif"
    tifffile.imwrite(tagged, pixels, extratags=[(274, "H", 1, orientation)])
    packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    tifffile.imwrite(described, pixels, extratags=[(700, "B", len(packet), packet)])
    # Not "loaded": Pillow itself misreads rows of some of these when it maps the file.
    for path, read in itertools.product((tagged, described), list(DOORS.values())[:3]):
        assert np.array_equal(read(path), expected), path


def test_a_closed_standard_error_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: int) -> int:
        raise OSError(9, "Bad file descriptor")

    path = tmp_path / "a.tif"
    Image.new("P", (4, 4)).save(path)
    monkeypatch.setattr("os.dup", closed)
    assert read_image(path).size == (4, 4)


def with_tag(path: Path, tag: int, value: int) -> Path:
    """Overwrite the value of a numeric tag of a little-endian classic file."""
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].tags[tag].offset
    content = bytearray(path.read_bytes())
    content[offset + 2 : offset + 12] = (
        (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
    )
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compression", [None, "deflate", "jpeg", "packbits"])
@pytest.mark.parametrize(("tag", "value"), [(256, 0), (257, 0), (322, 0), (323, 0), (322, 2**31), (277, 0)])
def test_impossible_sizes_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: int, value: int, compression: str | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 32, 3), np.uint8), photometric="rgb", tile=(16, 16), compression=compression)
    with_tag(path, tag, value)
    for extra in (True, False):
        if not extra:
            monkeypatch.setattr(strips_tiff, "missing_packages", lambda: ["tifffile"])
        for read in (read_image, in_strips):
            with pytest.raises(DataError, match=r"a\.tif'"):
                read(path)


def test_an_image_inside_a_tile_is_no_larger_than_the_tile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 32, 3), np.uint8), photometric="rgb", tile=(16, 16), compression="jpeg")
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    path.write_bytes(content)
    with pytest.raises(DataError, match="a segment of 16 x 16 pixels holds 65500 x 65500"):
        read_image(path)
