"""Maps of classes as GeoTIFF files: on a scene's own grid, with a colour table, compressed, in tiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_ssm.data.geo.gdal import at_work, part, quietly, rasterio
from vision_ssm.data.geo.grid import Grid
from vision_ssm.errors import DataError
from vision_ssm.storage import whole_file

__all__ = ["NO_CLASS", "TILE", "read_map", "writing_map"]

NO_CLASS = 255
"""What a map holds where there is no data."""

TILE = 512
"""Side of the tiles that files are written in."""

Write = Callable[[int, int, NDArray[np.uint8]], None]


@contextmanager
def writing_map(
    path: str | Path,
    size: tuple[int, int],
    grid: Grid | None,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> Iterator[Write]:
    """Yield what to call with (top, left, class indices [r, c]), once for every part of the map.

    Parts that begin and end at multiples of `TILE` are compressed once; others take their tiles up again. The file is
    there when the block ends, whole or not at all. Names of the classes are its tag ``classes``, a JSON list.

    Args:
        path: the file, ``.tif``.
        size: (height, width).
        grid: of the scene; None for no coordinates.
        class_names: in the order of the indices.
        palette: a colour for each.

    Raises:
        DataError: it cannot be written.
    """
    with whole_file(path) as unfinished, at_work():
        side = TILE if max(size) > TILE // 2 else 256
        facts: dict[str, Any] = {
            "driver": "GTiff", "dtype": "uint8", "count": 1, "height": size[0], "width": size[1], "nodata": NO_CLASS,
            "tiled": True, "blockxsize": side, "blockysize": side, "compress": "deflate", "BIGTIFF": "IF_SAFER",
        }  # fmt: skip
        if grid is not None and grid.transform is not None:
            facts |= {"crs": grid.crs, "transform": part("rasterio.transform").Affine(*grid.transform)}
        try:
            with quietly():
                dataset = rasterio().open(unfinished, "w", **facts)
            with dataset:
                if grid is not None and grid.transform is None:
                    dataset.gcps = list(grid.gcps), grid.crs
                table = dict.fromkeys(range(256), (0, 0, 0, 0))
                table |= {index: (*colour, 255) for index, colour in enumerate(palette[:NO_CLASS])}
                dataset.write_colormap(1, table)
                dataset.update_tags(classes=json.dumps(list(class_names)))

                def write(top: int, left: int, classes: NDArray[np.uint8]) -> None:
                    rows, columns = classes.shape
                    window = part("rasterio.windows").Window(left, top, columns, rows)
                    try:
                        dataset.write(classes, 1, window=window)
                    except part("rasterio.errors").RasterioError as error:
                        raise _not_written(path, error) from error

                yield write
        except part("rasterio.errors").RasterioError as error:
            raise _not_written(path, error) from error
        finally:  # what GDAL found no place for in the file; a map needs none of it
            Path(f"{unfinished}.aux.xml").unlink(missing_ok=True)


def _not_written(path: str | Path, error: Exception) -> DataError:
    return DataError(f"cannot write {str(path)!r}: {error.__cause__ or error}.")


def read_map(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a map that `writing_map` wrote, [H, W]; with ``size`` (height, width) every so many pixels one."""
    with at_work():
        with quietly():
            dataset = rasterio().open(path, driver="GTiff")
        with dataset:
            found: NDArray[np.uint8] = dataset.read(1, **({} if size is None else {"out_shape": size}))
            return found
