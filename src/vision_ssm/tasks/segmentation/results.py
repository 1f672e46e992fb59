"""What a segmentation finds in one image."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.geo.grid import Grid
from vision_ssm.data.geo.maps import TILE, read_map, writing_map
from vision_ssm.data.geo.polygons import write_polygons
from vision_ssm.tasks.legend import Colour, enlarged, with_legend
from vision_ssm.tasks.outlines import pack_counts, runs_of
from vision_ssm.tasks.segmentation.legend import blended
from vision_ssm.tasks.segmentation.masks import IGNORE, paletted, write_mask
from vision_ssm.tasks.task import Result

__all__ = ["Area", "SceneSegments", "Segments", "counted_rows", "listed_areas"]

_SHOWN = 4  # classes in a row of the table on the terminal


class Area(NamedTuple):
    """The pixels of one class: its index, name, how many, their share of all that have one, in [0, 1].

    And how many square metres they are on the ground, None where nobody knows.
    """

    number: int
    name: str
    pixels: int
    share: float
    square_metres: float | None = None


class _Found(Result):
    """What maps of classes say of themselves, be they in memory or in a file."""

    class_names: Sequence[str]
    palette: Sequence[Colour]
    confidence: float | None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(H, W)."""

    @property
    @abstractmethod
    def areas(self) -> list[Area]:
        """The classes that occur, largest first."""

    def to_dict(self) -> dict[str, Any]:
        """``{"size": [H, W], "classes": [{"class", "index", "pixels", "share"}]}``, ``mean_confidence`` if known.

        Each class has ``area_m2`` too where a scene says how large its pixels are.
        """
        known = {} if self.confidence is None else {"mean_confidence": self.confidence}
        listed = [
            {"class": area.name, "index": area.number, "pixels": area.pixels, "share": area.share}
            | ({} if area.square_metres is None else {"area_m2": area.square_metres})
            for area in self.areas
        ]
        return {"size": list(self.shape), "classes": listed, **known}

    @abstractmethod
    def indices(self) -> NDArray[np.uint8]:
        """Class indices [H, W], wherever they are kept."""

    def mask(self) -> Image.Image:
        """Return the class indices as a picture with a palette (mode ``P``)."""
        return paletted(self.indices(), self.palette)

    def cells(self) -> dict[str, Any]:
        """As `to_dict`, and for each class its mask, ``counts``: run lengths of the whole image, packed as in COCO."""
        cells, indices = self.to_dict(), self.indices()
        for entry in cells["classes"]:
            entry["counts"] = pack_counts(runs_of(indices == entry["index"], 0, 0, *indices.shape))
        return cells

    def row(self) -> dict[str, str]:
        """The size, and the largest classes."""
        height, width = self.shape
        shown = [f"{area.name} {_percent(area.share)}{_ground(area)}" for area in self.areas[:_SHOWN]]
        others = [f"{len(self.areas) - _SHOWN} more"] if len(self.areas) > _SHOWN else []
        return {"size": f"{height} x {width}", "classes": ", ".join([*shown, *others]) or "none"}

    def records(self) -> list[dict[str, Any]]:
        """One line per class that occurs."""
        return [
            {"class": area.name, "pixels": area.pixels, "share": f"{area.share:.6f}"}
            | ({} if area.square_metres is None else {"area_m2": f"{area.square_metres:.6g}"})
            for area in self.areas
        ]

    def _drawn(self, image: Image.Image, classes: NDArray[np.uint8]) -> Image.Image:
        over = enlarged(blended(image, classes, self.palette))
        return with_legend(over, [(f"{a.name} {_percent(a.share)}", self.palette[a.number]) for a in self.areas])


@dataclass(frozen=True, eq=False, repr=False)
class Segments(_Found):
    """A class for each pixel.

    Attributes:
        classes: indices uint8 [H, W], 255 where there is no image.
        class_names: in the order of the indices.
        palette: a colour for each class.
        confidence: mean probability of the classes chosen, in [0, 1]; None if it was not kept.
        grid: coordinates of the scene; None for pictures.
        polygons: format of the polygons that `save` writes too; None for none.
    """

    classes: NDArray[np.uint8]
    class_names: Sequence[str]
    palette: Sequence[Colour]
    confidence: float | None = None
    grid: Grid | None = None
    polygons: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.classes.shape
        return height, width

    @cached_property
    def areas(self) -> list[Area]:
        """The classes that occur, largest first."""
        count = len(self.class_names)
        metres = None if self.grid is None else self.grid.pixel_areas(*self.shape)
        if metres is None:
            pixels = np.array(Image.fromarray(self.classes).histogram()[:count])  # without eight bytes for each pixel
            return listed_areas(pixels, None, self.class_names)
        rows = counted_rows(self.classes, count)
        return listed_areas(rows.sum(0), metres @ rows, self.class_names)

    def indices(self) -> NDArray[np.uint8]:
        """The map itself."""
        return self.classes

    def placed(self, grid: Grid) -> Self:
        """Return the same with its coordinates."""
        return dataclasses.replace(self, grid=grid)

    def draw(self, image: Image.Image) -> Image.Image:
        """Lay the colours of the classes over the image, half transparent, and write below what they mean."""
        return self._drawn(image, self.classes)

    def save(self, stem: Path) -> list[Path]:
        """Write the map, a GeoTIFF where it has coordinates, else an index PNG, and the polygons if asked for."""
        if self.grid is None:
            path = Path(f"{stem}.png")
            write_mask(path, self.classes, self.palette)
        else:
            path = Path(f"{stem}.tif")
            with writing_map(path, self.shape, self.grid, self.class_names, self.palette) as write:
                for top in range(0, len(self.classes), TILE):
                    write(top, 0, self.classes[top : top + TILE])
        return [path, *_save_polygons(stem, self.polygons, self.classes, self.grid, self.class_names)]


@dataclass(frozen=True, eq=False)
class SceneSegments(_Found):
    """A class for each pixel of a scene that was read window by window.

    Attributes:
        size: (H, W).
        counted: the classes that occur, largest first.
        class_names: in the order of the indices.
        palette: a colour for each class.
        confidence: mean probability of the classes chosen, in [0, 1]; None without a pixel that holds data.
        grid: coordinates; None for none.
        polygons: as in `Segments`.
        file: the GeoTIFF of the map; None if it is ``kept``, indices [H, W].
    """

    size: tuple[int, int]
    counted: list[Area]
    class_names: Sequence[str]
    palette: Sequence[Colour]
    confidence: float | None
    grid: Grid | None
    polygons: str | None
    file: Path | None
    kept: NDArray[np.uint8] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size

    @property
    def areas(self) -> list[Area]:
        """The classes that occur, largest first."""
        return self.counted

    @property
    def classes(self) -> NDArray[np.uint8]:
        """Indices uint8 [H, W], 255 where there is no data; read from the file, a byte for each pixel."""
        if self.file is not None:
            return read_map(self.file)
        if self.kept is None:
            raise TypeError("a map is in a file or in memory")
        return self.kept

    def indices(self) -> NDArray[np.uint8]:
        """As `classes`."""
        return self.classes

    def draw(self, image: Image.Image) -> Image.Image:
        """As `Segments.draw`; the map is read at the size of the image."""
        return self._drawn(image, self.classes if self.file is None else read_map(self.file, image.size[::-1]))

    def save(self, stem: Path) -> list[Path]:
        """Write the polygons if asked for; the map is in its file."""
        if self.file is None:
            raise TypeError("a scene whose map is to be saved is mapped into its file")
        return [self.file, *_save_polygons(stem, self.polygons, self.file, self.grid, self.class_names)]


def counted_rows(classes: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Return how many pixels of each class are in each row of a map [H, W], [H, count]."""
    counts = np.zeros((len(classes), count), np.int64)
    step = max(1, 2**22 // max(1, classes.shape[1]))  # counting takes eight bytes a pixel
    for top in range(0, len(classes), step):
        part = classes[top : top + step]
        cells = np.arange(len(part))[:, None] * (IGNORE + 1) + part
        found = np.bincount(cells.ravel(), minlength=(IGNORE + 1) * len(part)).reshape(-1, IGNORE + 1)
        counts[top : top + step] = found[:, :count]
    return counts


def listed_areas(pixels: NDArray[Any], metres: NDArray[Any] | None, names: Sequence[str]) -> list[Area]:
    """Return the classes that occur, largest first, of how many pixels and square metres each has."""
    total = max(1, int(pixels.sum()))
    return [
        Area(
            int(index),
            names[index],
            int(pixels[index]),
            int(pixels[index]) / total,
            None if metres is None else float(f"{metres[index]:.9g}"),
        )
        for index in np.argsort(-pixels, kind="stable")
        if pixels[index]
    ]


def _save_polygons(
    stem: Path, kind: str | None, classes: NDArray[np.uint8] | Path, grid: Grid | None, names: Sequence[str]
) -> list[Path]:
    if kind is None:
        return []
    path = Path(f"{stem}.{kind}")
    write_polygons(path, classes, grid, names)
    return [path]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "<0.1 %"


def _ground(area: Area) -> str:
    if area.square_metres is None:
        return ""
    metres = area.square_metres
    return f" ({metres / 1e6:,.1f} km²)" if metres >= 1e6 else f" ({metres:,.0f} m²)"
