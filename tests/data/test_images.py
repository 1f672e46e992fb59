"""Decoding: every awkward kind of image file is either right or refused with its name and the reason."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data.images import MAX_PIXELS, check_image, picture_in_memory, read_image, to_rgb
from vision_ssm.data.strips import open_strips
from vision_ssm.errors import DataError


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], axis=2).astype(np.uint8))


def colours(image: Image.Image) -> list[list[int]]:
    return np.asarray(image).reshape(-1, 3).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_files_come_back_exactly(folder: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    image = read_image(saved(folder / f"a.{suffix}", gradient(), **options))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(gradient()))


def test_arrays_in_files_are_images(folder: Path) -> None:
    pixels = np.asarray(gradient())
    np.save(folder / "colour.npy", pixels)
    np.save(folder / "grey.NPY", pixels[..., 0])
    (folder / "grey.NPY.npy").rename(folder / "grey.NPY")
    assert np.array_equal(np.asarray(read_image(folder / "colour.npy")), pixels)
    assert np.array_equal(np.asarray(read_image(folder / "grey.NPY")), np.repeat(pixels[..., :1], 3, axis=2))
    assert check_image(folder / "colour.npy") == check_image(folder / "grey.NPY") == (40, 30)
    np.save(folder / "rates.npy", np.zeros((4, 4)))
    os.mkfifo(folder / "pipe.npy")
    for name, reason in {
        "rates.npy": r"uint8 of shape \[H, W\] or \[H, W, 3\], got float64 \[4, 4\]",
        "pipe.npy": "not a regular file",
    }.items():
        for reader in (read_image, check_image):
            with pytest.raises(DataError, match=rf"cannot read image '.*{name}'.*{reason}"):
                reader(folder / name)
    with pytest.raises(DataError, match="announces 1,200 pixels, over the limit of 1,199"):
        check_image(folder / "colour.npy", max_pixels=1199)


def test_16_bit_grey_is_scaled_not_clipped(folder: Path) -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        image = read_image(saved(folder / name, Image.fromarray(values)))
        assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255], name
        assert image.mode == "RGB"


def test_16_bit_pgm_is_scaled(folder: Path) -> None:
    (folder / "a.pgm").write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535))
    assert np.asarray(read_image(folder / "a.pgm"))[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "32-bit integers"), (np.float32, "floating-point")])
def test_pixels_without_a_defined_white_are_refused(folder: Path, dtype: type, kind: str) -> None:
    path = saved(folder / "a.tif", Image.fromarray(np.ones((4, 4), dtype=dtype)))
    with pytest.raises(DataError, match=rf"a\.tif.*{kind}.*convert the image to 8 or 16 bits"):
        read_image(path)


def test_cmyk_jpeg_becomes_rgb(folder: Path) -> None:
    # No ink at all is white, full black ink is black, and cyan ink takes away red.
    inks = [(0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0)]
    image = Image.new("CMYK", (48, 16))
    for column, ink in enumerate(inks):
        image.paste(ink, (16 * column, 0, 16 * column + 16, 16))
    pixels = np.asarray(read_image(saved(folder / "a.jpg", image, quality=95))).astype(int)
    for column, colour in enumerate([(255, 255, 255), (0, 0, 0), (0, 255, 255)]):
        assert np.abs(pixels[8, 16 * column + 8] - colour).max() < 12


def test_transparency_is_composited_over_white(folder: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (0, 0, 0, 0), (0, 0, 0, 128)])
    assert colours(read_image(saved(folder / "rgba.png", image))) == [[10, 20, 30], [255] * 3, [127] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    path = saved(folder / "palette.png", palette, transparency=1)
    assert colours(read_image(path)) == [[255, 0, 0], [255, 255, 255]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert read_image(saved(folder / "la.png", grey)).getpixel((0, 0)) == (255, 255, 255)
    keyed = saved(folder / "keyed.png", Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))
    assert read_image(keyed).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_first_frame_of_animations_and_pages(folder: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(folder / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as check:
        assert check.n_frames == 3
    assert colours(read_image(path)) == [[255, 0, 0]] * 64


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_one_pixel(folder: Path, mode: str) -> None:
    image = read_image(saved(folder / "a.png", Image.new(mode, (1, 1))))
    assert (image.size, image.mode) == ((1, 1), "RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied(folder: Path, orientation: int, suffix: str) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(folder / f"a.{suffix}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(np.asarray(read_image(path))[:, :, 0], upright)


def test_damaged_exif_does_not_matter(folder: Path) -> None:
    path = saved(folder / "a.jpg", gradient(), exif=b"Exif\0\0MM\0\x2a\0\0\0\xff\xff\xff\xff")
    assert read_image(path).size == (40, 30)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "jp2"])
def test_truncated_files_are_refused(folder: Path, suffix: str) -> None:
    path = saved(folder / f"whole.{suffix}", gradient(200, 150))
    content = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        cut = folder / f"cut.{suffix}"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match=rf"cannot read image .*cut\.{suffix}'"):
            read_image(cut)


def test_files_that_are_no_images(folder: Path) -> None:
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("hello, I am not an image" * 10)
    (folder / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    for name, reason in {
        "empty.jpg": r"empty \(0 bytes\)",
        "text.jpg": "not an image in a supported format",
        "drawing.eps": "not an image in a supported format",
        "folder.jpg": "it is a folder",
        "pipe.jpg": "not a regular file",
        "missing.jpg": "no such file",
    }.items():
        for reader in (read_image, check_image):
            with pytest.raises(DataError, match=rf"{name}'.*{reason}"):
                reader(folder / name)


@pytest.mark.parametrize(("width", "height"), [(60_000, 50_000), (30_000, 20_000)])
def test_decompression_bomb_is_refused_before_decoding(folder: Path, width: int, height: int) -> None:
    path = folder / "bomb.png"
    path.write_bytes(png_header(width, height))
    pixels = width * height
    message = rf"bomb\.png.*announces {pixels:,} pixels, over the limit of 536,870,912.*max_pixels={pixels}"
    for reader in (read_image, check_image):
        with pytest.raises(DataError, match=message):
            reader(path)


def test_a_gif_frame_far_larger_than_its_canvas_is_refused(folder: Path) -> None:
    content = bytearray(saved(folder / "a.gif", gradient().quantize()).read_bytes())
    frame = content.index(b"\x2c\0\0\0\0")
    content[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    (folder / "a.gif").write_bytes(bytes(content))
    with pytest.raises(DataError, match="over the limit"):
        read_image(folder / "a.gif")


def test_libtiffs_complaints_do_not_reach_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(folder / "a.tif", gradient(), compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a\.tif"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_the_limit_admits_large_scans_and_can_be_moved(folder: Path) -> None:
    assert MAX_PIXELS >= 16384 * 16384
    path = saved(folder / "scan.png", Image.new("1", (16384, 16384)))
    assert check_image(path) == (16384, 16384)
    with pytest.raises(DataError, match="limit of 100"):
        read_image(saved(folder / "small.png", gradient()), max_pixels=100)


def test_damaged_files_never_raise_anything_else(folder: Path) -> None:
    generator = np.random.default_rng(0)
    path = folder / "damaged"
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm", "jp2"):
        whole = saved(folder / f"a.{suffix}", gradient()).read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            for position in generator.integers(0, min(len(content), 400), size=4):
                content[position] = generator.integers(256)
            path.write_bytes(bytes(content))
            try:
                assert read_image(path, max_pixels=10**6).mode == "RGB"
            except DataError as error:
                assert "damaged" in str(error)


def test_modes_in_memory() -> None:
    assert to_rgb(Image.new("YCbCr", (2, 2))).mode == "RGB"
    assert to_rgb(Image.new("HSV", (2, 2))).mode == "RGB"
    with pytest.raises(DataError, match="no defined white"):
        to_rgb(Image.new("F", (2, 2)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
def test_images_in_memory_stand_upright_like_their_files(folder: Path, suffix: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if suffix == "webp" else {"compression": "tiff_lzw"} if suffix == "tif" else {}
        path = saved(folder / f"a.{suffix}", gradient(), exif=exif, **options)
        expected = np.asarray(read_image(path))
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(picture_in_memory(image)), expected)
        with Image.open(path) as image:
            image.load()
            assert np.array_equal(np.asarray(picture_in_memory(image)), expected)
            with open_strips(image) as opened:
                assert (opened.height, opened.width) == expected.shape[:2]
                assert np.array_equal(np.concatenate(list(opened.bands)), expected)


def test_an_image_in_memory_is_left_as_it_was(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(folder / "a.png", gradient(), exif=exif)
    with Image.open(path) as image:
        picture_in_memory(image)
        assert image.size == gradient().size
        assert np.array_equal(np.asarray(image), np.asarray(gradient()))


def test_a_later_page_in_memory_is_that_page(folder: Path) -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    path = saved(folder / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    with Image.open(path) as image:
        image.seek(1)
        assert picture_in_memory(image).getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize("side", [8, 12, 64])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["avif", "webp", "jp2", "png", "gif", "bmp"])
def test_strips_are_the_image_in_every_format(folder: Path, suffix: str, mode: str, side: int) -> None:
    path = saved(folder / f"a.{suffix}", gradient(side, side).convert(mode))
    with open_strips(path) as opened:
        assert np.array_equal(np.concatenate(list(opened.bands)), np.asarray(read_image(path)))


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4",
        b"{" * 90,
        b"(" * 5000,
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 4)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 99999999999999999999)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 4)}",
        b"\xff\xfe\0",
    ],
)
def test_arrays_with_a_damaged_header(folder: Path, header: bytes) -> None:
    path = folder / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(16))
    for reader in (read_image, check_image):
        with pytest.raises(DataError, match=r"cannot read image '.*a\.npy'"):
            reader(path)


def test_a_pickle_or_archive_called_npy_is_no_advice_to_load_it(folder: Path) -> None:
    (folder / "a.npy").write_bytes(b"\x80\4K\1.")
    np.savez(folder / "b.npz", np.zeros((4, 4), np.uint8))
    (folder / "b.npz").rename(folder / "b.npy")
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DataError, match=rf"{name}'") as caught:
            read_image(folder / name)
        assert "allow_pickle" not in str(caught.value)


def test_whatever_a_parser_raises_is_the_failure_of_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OfAnotherLibrary(Exception):
        pass

    def fail(*_: object) -> None:
        raise OfAnotherLibrary("no words")

    path = saved(folder / "a.png", gradient())
    monkeypatch.setattr("vision_ssm.data.images.without_large_metadata", fail)
    with pytest.raises(DataError, match=r"cannot read image '.*a\.png': no words"):
        read_image(path)
