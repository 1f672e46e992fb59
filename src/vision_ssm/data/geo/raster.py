"""Scenes read from GeoTIFF files: any sample type, one to sixteen bands, whole or window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.budget import MAX_PIXELS, check_bytes, check_pixels
from vision_ssm.data.geo.gdal import at_work, part, quietly, rasterio
from vision_ssm.data.geo.grid import Grid
from vision_ssm.data.preprocessing import MOST_BANDS
from vision_ssm.errors import DataError, notify

__all__ = ["Raster", "RasterFile", "open_raster", "read_raster"]

PREVIEW = 2048
"""Longer side of a picture of a scene that is too large to be drawn on, in pixels."""

_READ = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
_NO_COLOURS = ("cyan", "magenta", "yellow", "black", "hue", "saturation", "lightness", "Y", "Cb", "Cr")
_STRIPE_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class Raster:
    """A scene, or a part of one, in memory.

    Attributes:
        values: [H, W, C], uint8 as in the file, or any other samples as float32.
        valid: bool [H, W], which pixels hold data; None for all.
        samples: the type of the numbers, see `vision_ssm.data.preprocessing.Preprocessing`.
        bits: that samples without sign may use.
        bands: a name for each band.
        name: of the file.
        grid: its coordinates; None without any.
    """

    values: NDArray[np.uint8] | NDArray[np.float32]
    valid: NDArray[np.bool_] | None
    samples: str
    bits: int
    bands: tuple[str, ...]
    name: str
    grid: Grid | None = None

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.values.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.values.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.width, self.height

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The values."""
        return np.array(self.values, dtype=dtype) if copy else np.asarray(self.values, dtype=dtype)

    def picture(self) -> Image.Image:
        """Return it as RGB for people: its red, green and blue, else the first three bands, else the first one grey.

        Samples other than 8 bits are stretched from their 2nd to their 98th percentile; without data is white.
        """
        named = [self.bands.index(colour) for colour in ("red", "green", "blue") if colour in self.bands]
        first = list(range(3)) if len(self.bands) >= 3 else [0]
        shown = self.values[..., named if len(named) == 3 else first]
        if shown.dtype != np.uint8:
            shown = _stretched(shown, self.valid)
        if self.valid is not None:
            shown = np.where(self.valid[..., None], shown, np.uint8(255))
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(shown, (self.height, self.width, 3))))


class RasterFile:
    """An open scene. Made by `open_raster`.

    Attributes:
        path: of the file.
        height, width: in pixels.
        bands: a name for each band; transparency is none of them.
        samples, bits, grid: as in `Raster`.
    """

    def __init__(self, path: Path, dataset: Any) -> None:
        self.path, self._dataset = path, dataset
        self.height, self.width = int(dataset.height), int(dataset.width)
        colours = [colour.name for colour in dataset.colorinterp]
        self._palette = _palette(dataset) if colours == ["palette"] else None
        self._alpha = colours.index("alpha") + 1 if "alpha" in colours else None
        if self._alpha is not None and not _is_transparency(dataset, self._alpha):
            _tell_of_false_alpha(path.name)
            colours[self._alpha - 1] = "undefined"
            self._alpha = None
        self._indexes = [index for index in dataset.indexes if index != self._alpha]
        kinds = {dataset.dtypes[index - 1] for index in self._indexes}
        self._require_read(kinds, colours)
        self._kind = kinds.pop()
        scales = [(dataset.scales[index - 1], dataset.offsets[index - 1]) for index in self._indexes]
        self._scaling = np.array(scales) if any(pair != (1, 0) for pair in scales) else None
        self._nodata = [dataset.nodatavals[index - 1] for index in self._indexes]
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        self._inverted = structure.get("MINISWHITE") == "YES" and self._kind.startswith("uint")
        is_scaled = self._scaling is not None or self._kind.startswith("float")
        self.samples = "float32" if is_scaled else "uint8" if self._palette is not None else self._kind
        self.bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(self._kind).itemsize))
        self.bands = (
            ("red", "green", "blue")
            if self._palette is not None
            else tuple(_named(dataset, index, colours) for index in self._indexes)
        )
        self.grid = _grid(dataset)

    def read(self, top: int, left: int, rows: int, columns: int) -> Raster:
        """Read a part of it. Raises DataError: the file is damaged there."""
        window = part("rasterio.windows").Window(left, top, columns, rows)
        return self._read({"window": window})

    def whole(self, max_pixels: int = MAX_PIXELS) -> Raster:
        """Read all of it. Raises DataError: it is damaged, or takes more memory than is allowed."""
        check_pixels(self.width, self.height, max_pixels)
        # As it comes, and as it is handed on.
        sample = np.dtype(self._kind).itemsize + (1 if self.samples == "uint8" else 8)
        check_bytes(self.width * self.height * len(self.bands) * sample, max_pixels)
        return self._read({})

    def preview(self) -> Raster:
        """Read it at a size that fits a screen, every so many pixels one, where it is larger than that."""
        factor = max(self.height, self.width) / PREVIEW
        if factor <= 1:
            return self._read({})
        height, width = (max(1, round(side / factor)) for side in (self.height, self.width))
        return self._read({"out_shape": (height, width)})

    def stripes(self) -> Iterator[Raster]:
        """Read it from top to bottom in pieces of its width."""
        step = max(1, _STRIPE_BYTES // (self.width * len(self.bands) * 4))
        block = self._dataset.block_shapes[0][0]
        step = max(step // block * block, block) if block < self.height else step  # no block is decoded twice
        for top in range(0, self.height, step):
            yield self.read(top, 0, min(step, self.height - top), self.width)

    def _require_read(self, kinds: set[str], colours: Sequence[str]) -> None:
        count = len(self._indexes)
        if not 1 <= count <= MOST_BANDS:
            raise DataError(f"it has {count} bands, and 1 to {MOST_BANDS} are read; write those that matter to a file")
        if len(kinds) > 1 or not kinds <= set(_READ):
            held = " and ".join(sorted(kinds))
            raise DataError(f"its samples are {held}; whole numbers of 8, 16 or 32 bits or real ones are read")
        strange = sorted(set(colours) & set(_NO_COLOURS))
        if strange:
            raise DataError(f"its bands are called {', '.join(strange)}, and such colours are not read; convert to RGB")
        block = max(int(np.prod(shape)) for shape in self._dataset.block_shapes)
        check_bytes(block * count * np.dtype(next(iter(kinds))).itemsize, MAX_PIXELS)

    def _read(self, what: dict[str, Any]) -> Raster:
        with _named_errors(self.path):
            shape = {"out_shape": (len(self._indexes), *what["out_shape"])} if "out_shape" in what else {}
            raw = self._dataset.read(self._indexes, **{**what, **shape})
            valid = self._valid(raw, what)
        return Raster(
            self._values(raw), None if valid is None or valid.all() else valid,
            self.samples, self.bits, self.bands, str(self.path), self.grid,
        )  # fmt: skip

    def _values(self, raw: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Samples [C, H, W] of the file to values [H, W, C]."""
        if self._palette is not None:
            coloured: NDArray[np.uint8] = self._palette[raw[0]]
            return coloured
        if self._inverted:
            raw = np.dtype(self._kind).type(2**self.bits - 1) - raw
        if self._scaling is not None:
            scale, offset = (column[:, None, None] for column in self._scaling.T)
            raw = raw * scale + offset
        channels_last = raw.transpose(1, 2, 0)
        if self.samples == "uint8":
            return np.ascontiguousarray(channels_last, dtype=np.uint8)
        return np.ascontiguousarray(channels_last, dtype=np.float32)

    def _valid(self, raw: NDArray[Any], what: dict[str, Any]) -> NDArray[np.bool_] | None:
        """Which pixels hold data: by the transparency or mask of the file, by its value for none, and if all numbers.

        A single band at that value is taken for data where it may be: 0 is also the darkest that a pixel can be. Where
        it cannot, a negative number or none, one such band is enough to leave the pixel out.
        """
        dataset = self._dataset
        valid: NDArray[np.bool_] | None = None
        flags = {flag.name for flag in dataset.mask_flag_enums[0]}
        if self._alpha is not None:
            valid = dataset.read(self._alpha, **what) != 0
        elif "per_dataset" in flags and "alpha" not in flags:
            valid = dataset.read_masks(1, **what) != 0
        elif any(value is not None for value in self._nodata):
            missing = np.stack([_equal(raw[at], value) for at, value in enumerate(self._nodata)])
            is_strict = any(value is not None and not value >= 0 for value in self._nodata)  # NaN is not >= 0 either
            valid = np.logical_not(missing.any(0) if is_strict else missing.all(0))
        if raw.dtype.kind == "f":
            numbers = np.isfinite(raw).all(0)
            valid = numbers if valid is None else valid & numbers
        return valid


@contextmanager
def open_raster(path: str | Path) -> Iterator[RasterFile]:
    """Open a TIFF file as a scene.

    Raises:
        DataError: naming the file and what it holds: unreadable, samples or bands that are not read, or no rasterio.
    """
    path = Path(path)
    if not path.is_file():  # a name that is none may mean an address or an archive to GDAL
        raise DataError(f"cannot read image {str(path)!r}: no such file.")
    with at_work():
        with _named_errors(path), quietly():
            dataset = rasterio().open(path, driver="GTiff")
        with dataset:
            with _named_errors(path):
                opened = RasterFile(path, dataset)
            yield opened


def read_raster(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Raster:
    """Read a scene whole. Raises DataError as `open_raster`, or if it takes more memory than is allowed."""
    with open_raster(path) as opened, _named_errors(opened.path):
        return opened.whole(max_pixels)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    errors = part("rasterio.errors")
    name = f"cannot read image {str(path)!r}: "
    try:
        yield
    except DataError as error:
        told = str(error)
        raise DataError(told if told.startswith(name) else f"{name}{told.rstrip('.')}.") from error
    except (errors.RasterioError, OSError, MemoryError) as error:
        cause = error.__cause__ or error
        told = "not enough memory" if isinstance(error, MemoryError) else str(cause).rstrip(".")
        raise DataError(f"{name}{told}.") from error


def _is_transparency(dataset: Any, index: int) -> bool:
    """Tell whether a band that is marked as transparency can be any: most of it is then all or nothing.

    Near infrared is often marked so by programs that take any fourth band for it. Sixteen places are looked at.
    """
    kind = np.dtype(dataset.dtypes[index - 1])
    if kind.kind != "u":
        return True
    side, window = 64, part("rasterio.windows").Window
    places = [
        (int((dataset.width - side) * column / 3), int((dataset.height - side) * row / 3))
        for row in range(4)
        for column in range(4)
    ]
    parts = [
        dataset.read(index, window=window(max(left, 0), max(top, 0), *(min(side, s) for s in dataset.shape[::-1])))
        for left, top in places
    ]
    values = np.concatenate([values.ravel() for values in parts])
    return float(((values > 0) & (values < np.iinfo(kind).max)).mean()) <= 0.5


_told: set[str] = set()


def _tell_of_false_alpha(name: str) -> None:
    if not _told:
        notify(
            f"{name} marks as transparency a band that holds values of its own, as is often done with near infrared: "
            "it is read as a band, here and in other scenes like it."
        )
        _told.add(name)


def _equal(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    if nodata is None:
        return np.zeros(values.shape, bool)
    if np.isnan(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    same: NDArray[np.bool_] = values == (values.dtype.type(nodata) if values.dtype.kind == "f" else nodata)
    return same


def _palette(dataset: Any) -> NDArray[np.uint8]:
    table = np.zeros((2**16 if dataset.dtypes[0] == "uint16" else 2**8, 3), np.uint8)
    for index, colour in dataset.colormap(1).items():
        table[index] = colour[:3]
    return table


def _named(dataset: Any, index: int, colours: Sequence[str]) -> str:
    """Name a band by its description, else by its colour."""
    colour = colours[index - 1]
    plain = "grey" if colour == "gray" and dataset.count == 1 else f"band {index}"
    return str(dataset.descriptions[index - 1] or (plain if colour in ("gray", "undefined") else colour))


def _grid(dataset: Any) -> Grid | None:
    gcps, crs = dataset.gcps
    if dataset.transform.is_identity and dataset.crs is None:
        return Grid(crs, None, tuple(gcps)) if gcps else None
    return Grid(dataset.crs, tuple(dataset.transform)[:6])


def _stretched(values: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    known = values[valid] if valid is not None else values.reshape(-1, values.shape[-1])
    if not len(known):
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(known[:: max(1, len(known) // 2**16)], (2, 98), axis=0)
    scaled = (np.nan_to_num(values) - low) * (255 / np.maximum(high - low, 1e-9))
    shown: NDArray[np.uint8] = scaled.clip(0, 255).astype(np.uint8)
    return shown
