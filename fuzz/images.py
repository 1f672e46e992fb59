"""Damaged image files through both readers: they agree on the pixels, or both refuse, and within a budget of memory."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.faults import Fault, Outcome, outcome_of
from vision_ssm.data.images import check_image, read_image
from vision_ssm.data.strips import open_strips
from vision_ssm.errors import DataError

__all__ = ["case"]

MOST_PIXELS = 2**20
MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("1", "L", "LA", "I;16", "RGB", "RGBA", "CMYK"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "ppm": ("1", "L", "I;16", "RGB"),
    "gif": ("L", "P", "RGB"),
    "jpeg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "jpeg2000": ("L", "RGB"),
}
SUFFIXES = {"tiff": (".tif",), "jpeg": (".jpg",), "jpeg2000": (".jp2",), "npy": (".npy",)}


def case(rng: random.Random, folder: Path) -> None:
    """Damage a file, and read it both ways."""
    kind = rng.choice((*MODES, "tiff", "tiff", "png", "tifffile", "tifffile", "npy", "noise"))
    content = bytearray(_made(rng, kind))
    changes = [_damage(rng, content) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
    suffix = rng.choice(SUFFIXES.get(kind, (".tif" if kind == "tifffile" else f".{kind}",)) * 5 + (".npy", ".png"))
    path = folder / f"image{suffix}"
    path.write_bytes(content)
    whole = outcome_of(lambda: np.asarray(read_image(path, max_pixels=MOST_PIXELS)))
    pieces = outcome_of(lambda: _joined(path))
    header = outcome_of(lambda: check_image(path, max_pixels=MOST_PIXELS))
    try:
        _judge(whole, pieces, header)
    except Fault as fault:
        raise Fault(f"{kind} as {suffix} ({len(content)} bytes, {changes}): {fault}") from None


def _judge(whole: Outcome, pieces: Outcome, header: Outcome) -> None:
    for reader, outcome in (("read_image", whole), ("open_strips", pieces), ("check_image", header)):
        if outcome.error is not None and not isinstance(outcome.error, DataError):
            raise Fault(f"{reader} ends in {outcome}")
    if (whole.error is None) != (pieces.error is None):
        raise Fault(f"read_image gives {whole}, open_strips {pieces}")
    if whole.error is None and not np.array_equal(whole.value, pieces.value):
        raise Fault(f"the readers differ: {whole.value.shape} and {pieces.value.shape}")
    if whole.error is None and header.error is not None:
        raise Fault(f"check_image refuses what can be read: {header}")


def _joined(path: Path) -> Any:
    with open_strips(path, max_pixels=MOST_PIXELS) as strips:
        return np.concatenate([np.asarray(band) for band in strips.bands])


def _made(rng: random.Random, kind: str) -> bytes:
    height, width = rng.choice((1, 2, 17, 40)), rng.choice((1, 3, 16, 33))
    noise = np.random.default_rng(rng.randrange(2**32))
    if kind == "noise":
        return noise.bytes(rng.choice((1, 100, 5000)))
    file = io.BytesIO()
    if kind == "npy":
        dtype = rng.choice((np.uint8, np.uint8, np.uint16, np.float32))
        np.save(file, noise.integers(0, 255, rng.choice(((height, width), (height, width, 3)))).astype(dtype))
        return file.getvalue()
    if kind == "tifffile":
        return _unusual_tiff(rng, noise, height, width)
    mode = rng.choice(MODES[kind])
    if mode == "I;16":
        picture = Image.fromarray(noise.integers(0, 2**16, (height, width)).astype(np.uint16))
    else:
        picture = Image.fromarray(noise.integers(0, 256, (height, width, 4)).astype(np.uint8), "RGBA").convert(mode)
    options: dict[str, Any] = {}
    if kind == "tiff":
        options["compression"] = rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    if kind in ("jpeg", "png", "webp", "tiff") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((3, 6, 8))
        options["exif"] = exif
    picture.save(file, kind, **options)
    return file.getvalue()


def _unusual_tiff(rng: random.Random, noise: np.random.Generator, height: int, width: int) -> bytes:
    try:
        import tifffile
    except ImportError:
        return b"II*\0"
    dtype = rng.choice((np.uint8, np.uint16, np.int16, np.float32))
    channels = rng.choice((1, 3, 4))
    pixels = noise.integers(0, 255, (height, width, channels)).astype(dtype)
    options: dict[str, Any] = {"photometric": "rgb" if channels > 1 else "minisblack"}
    if rng.random() < 0.4:
        options["tile"] = (16, 32)
    elif rng.random() < 0.5:
        options["rowsperstrip"] = rng.choice((1, 5))
    if rng.random() < 0.3:
        options["compression"] = "zlib"
    if rng.random() < 0.2 and channels > 1:
        options["planarconfig"], pixels = "separate", np.moveaxis(pixels, -1, 0)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(
            file,
            pixels[..., 0] if channels == 1 else pixels,
            bigtiff=rng.random() < 0.2,
            byteorder=rng.choice("<>"),
            **options,
        )
    return file.getvalue()


def _damage(rng: random.Random, content: bytearray) -> str:
    """Change some bytes, more often near the beginning, where headers are."""
    if not content:
        return "nothing"
    at = min(int(rng.expovariate(1 / 60)), len(content) - 1) if rng.random() < 0.7 else rng.randrange(len(content))
    how = rng.choice(("flip", "byte", "number", "cut", "insert", "repeat", "swap"))
    if how == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif how == "number":
        number = rng.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63))
        size = rng.choice((2, 4, 8))
        content[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    elif how == "cut":
        del content[at:]
    elif how == "insert":
        content[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
    elif how == "repeat":
        content += content[: at + 1]
    else:
        other = rng.randrange(len(content))
        content[at], content[other] = content[other], content[at]
    return f"{how} at {at}"
