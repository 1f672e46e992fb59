"""Images in strips: the same pixels as decoded whole, for every format that is read piece by piece and for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data import strips as module
from vision_ssm.data import strips_tiff
from vision_ssm.data.images import read_image
from vision_ssm.data.strips import open_strips
from vision_ssm.errors import DataError

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

HEIGHT, WIDTH = 91, 67


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of seven rows, so that small images are cut, too."""
    monkeypatch.setattr(module, "_STRIP_BYTES", 3 * WIDTH * 7)


def noise(channels: int = 3, dtype: type = np.uint8) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels)).astype(dtype)


def read(image: Any, **options: Any) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The pixels, joined, and the heights of the strips."""
    with open_strips(image, **options) as opened:
        bands = list(opened.bands)
        assert all(band.dtype == np.uint8 and band.shape[1:] == (opened.width, 3) for band in bands)
    pixels = np.concatenate(bands)
    assert pixels.shape == (opened.height, opened.width, 3)
    return pixels, [len(band) for band in bands]


def refuse_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded whole")

    monkeypatch.setattr(module, "read_image", fail)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *(("bmp", mode) for mode in ("1", "L", "RGB", "RGBA")),
        *(("tif", mode) for mode in ("1", "L", "LA", "I;16", "RGB", "RGBA", "RGBX", "CMYK")),
        *(("ppm", "RGB"), ("pgm", "L"), ("pgm", "I;16"), ("pbm", "1")),
    ],
)
def test_uncompressed_files_are_read_by_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, mode: str
) -> None:
    picture = Image.fromarray(noise(4), "RGBA")
    picture = Image.fromarray(noise(1, np.uint16)[..., 0]) if mode == "I;16" else picture.convert(mode)
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    expected = np.asarray(read_image(path))
    refuse_whole(monkeypatch)
    pixels, heights = read(path)
    assert np.array_equal(pixels, expected)
    assert heights == [7] * 13


TIFFS: dict[str, tuple[int, type, dict[str, Any]]] = {
    "strips": (3, np.uint8, {"rowsperstrip": 5}),
    "tiles": (3, np.uint8, {"tile": (32, 16)}),
    "one row per strip": (3, np.uint8, {"rowsperstrip": 1}),
    "16 bit": (3, np.uint16, {}),
    "big endian": (3, np.uint16, {"byteorder": ">"}),
    "grey tiles": (1, np.uint8, {"tile": (16, 16)}),
    "bigtiff": (3, np.uint8, {"bigtiff": True}),
    "deflate": (3, np.uint8, {"compression": "deflate", "rowsperstrip": 8}),
    "lzw tiles": (3, np.uint8, {"compression": "lzw", "predictor": True, "tile": (32, 32)}),
    "bigtiff deflate tiles": (3, np.uint8, {"compression": "deflate", "tile": (48, 32), "bigtiff": True}),
    "grey 16 deflate": (1, np.uint16, {"compression": "deflate", "tile": (32, 32)}),
    "grey 16 big endian": (1, np.uint16, {"compression": "deflate", "byteorder": ">"}),
    "16 bit deflate": (3, np.uint16, {"compression": "deflate", "tile": (32, 32)}),
    "white is zero": (1, np.uint8, {"photometric": "miniswhite", "compression": "deflate"}),
    "white is zero, raw": (1, np.uint8, {"photometric": "miniswhite"}),
    "alpha": (4, np.uint8, {"compression": "deflate", "extrasamples": ["unassalpha"]}),
    "premultiplied": (4, np.uint8, {"compression": "deflate", "extrasamples": ["assocalpha"]}),
    "raw premultiplied": (4, np.uint8, {"extrasamples": ["assocalpha"]}),
    "infrared": (4, np.uint8, {"compression": "deflate", "extrasamples": ["unspecified"]}),
    "planes": (3, np.uint8, {"planarconfig": "separate"}),
    "planes of tiles": (3, np.uint8, {"planarconfig": "separate", "tile": (32, 32), "compression": "deflate"}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_files_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    channels, dtype, options = TIFFS[kind]
    pixels = noise(channels, dtype)
    pixels = pixels[..., 0] if channels == 1 else pixels
    pixels = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, **{"photometric": "rgb" if channels > 1 else "minisblack", **options})
    expected = np.asarray(read_image(path))
    refuse_whole(monkeypatch)
    found, heights = read(path)
    assert np.array_equal(found, expected)
    assert heights == [7] * 13


@pytest.mark.parametrize("options", [{"tile": (32, 32)}, {"rowsperstrip": 16}])
def test_jpeg_in_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([2 * y, 3 * x, 120 + 0 * x], axis=2).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth, photometric="rgb", compression="jpeg", compressionargs={"level": 95}, **options)
    expected = np.asarray(read_image(path)).astype(int)
    refuse_whole(monkeypatch)
    assert np.abs(read(path)[0] - expected).max() <= 2  # two decoders


@pytest.mark.parametrize("compression", ["zstd", "jpeg2000"])
def test_tiff_that_pillow_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(), photometric="rgb", compression=compression, tile=(32, 32))
    assert np.array_equal(read(path)[0], noise())
    monkeypatch.setattr(strips_tiff, "missing_packages", lambda: ["tifffile"])
    if compression == "jpeg2000":
        with pytest.raises(DataError, match=r"a\.tif'.*this kind of TIFF needs pip install 'vision-ssm\[large\]'"):
            read(path)


def test_without_the_extra_compressed_tiff_is_decoded_whole_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(), photometric="rgb", compression="deflate", tile=(32, 32))
    with open_strips(path) as opened:
        assert opened.note is None
    monkeypatch.setattr(strips_tiff, "missing_packages", lambda: ["imagecodecs"])
    with open_strips(path) as opened:
        assert opened.note is not None
        assert "is decoded whole before it is cut into strips; pip install 'vision-ssm[large]'" in opened.note
        assert np.array_equal(np.concatenate(list(opened.bands)), noise())


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "jpg"])
def test_other_formats_are_decoded_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    pixels, heights = read(path)
    assert np.array_equal(pixels, np.asarray(read_image(path)))
    assert heights == [7] * 13


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_turned_images_stand_upright(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise()).save(path, exif=exif)
    pixels, _ = read(path)
    assert pixels.shape == (WIDTH, HEIGHT, 3)
    assert np.array_equal(pixels, np.asarray(read_image(path)))


def test_palettes(tmp_path: Path) -> None:
    for suffix in ("bmp", "tif", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise()).quantize(20).save(path)
        assert np.array_equal(read(path)[0], np.asarray(read_image(path)))


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_files_of_arrays_and_pictures(tmp_path: Path, order: Any) -> None:
    path = tmp_path / "a.npy"
    for pixels in (noise(), noise(1)[..., 0]):
        expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
        np.save(path, np.asarray(pixels, order=order))
        for image in (path, str(path), pixels, Image.fromarray(pixels)):
            found, heights = read(image)
            assert np.array_equal(found, expected)
            assert heights == [7] * 13


def test_refused_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for pixels, told in (
        (np.zeros((4, 4), np.float32), r"uint8 of shape \[H, W\] or \[H, W, 3\], got float32 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4), np.uint8), r"got uint8 \[0, 4\]"),
        (np.array([[None]]), "Python objects"),
    ):
        np.save(path, pixels)
        with pytest.raises(DataError, match=rf"cannot read image '.*a\.npy'.*{told}"):
            read(path)
    np.save(path, noise())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot read image '.*a\.npy'"):
        read(path)
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"cannot read image '.*a\.npy'"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.npy")


@pytest.mark.parametrize(
    ("suffix", "options"), [("bmp", {}), ("ppm", {}), ("tif", {}), ("tif", {"compression": "tiff_adobe_deflate"})]
)
def test_truncated_files_are_named(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"a.{suffix}"
    tail = 2000
    if options:  # by tifffile, which writes the directory in front of the pixels
        tifffile.imwrite(path, noise(), photometric="rgb", compression="deflate", rowsperstrip=16)
    elif suffix == "tif":
        tifffile.imwrite(path, noise(), photometric="rgb")
    else:
        Image.fromarray(noise()).save(path)
    path.write_bytes(path.read_bytes()[:-tail])
    with pytest.raises(DataError, match=rf"cannot read image '.*a\.{suffix}': the file is truncated"):
        read(path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(), photometric="rgb", compression="deflate", tile=(32, 32))
    data = bytearray(path.read_bytes())
    data[-3000:-2000] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot read image '.*a\.tif'"):
        read(path)
    path.write_bytes(b"II*\0junk")
    with pytest.raises(DataError, match=r"cannot read image '.*a\.tif'"):
        read(path)
    (tmp_path / "b.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="not an image in a supported format"):
        read(tmp_path / "b.png")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.tif")
    with pytest.raises(DataError, match="it is a folder"):
        read(tmp_path)


def test_pixels_without_a_defined_white(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.float32))
    with pytest.raises(DataError, match="floating-point numbers"):
        read(path)
    tifffile.imwrite(path, np.zeros((8, 8, 3), np.float32), photometric="rgb", compression="zstd")
    with pytest.raises(DataError, match="expected grey or RGB of 8 or 16 bits"):
        read(path)


def test_the_limit_of_pixels_holds_everywhere(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.npy", "a.ppm", "a.tif", "a.png", "j.tif")]
    np.save(files[0], noise())
    for file in files[1:4]:
        Image.fromarray(noise()).save(file)
    tifffile.imwrite(files[4], noise(), photometric="rgb", compression="jpeg2000", tile=(32, 32))
    for file in files:
        with pytest.raises(DataError, match=rf"{file.name}'.*announces 6,097 pixels, over the limit of 6,000"):
            read(file, max_pixels=6000)


def test_errors_of_the_consumer_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    Image.fromarray(noise()).save(path)
    with pytest.raises(ZeroDivisionError), open_strips(path) as opened:
        next(opened.bands)
        raise ZeroDivisionError
