"""Small made-up scenes of every kind, written by rasterio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vision_ssm.data.geo.gdal import quietly

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo: pip install 'vision-ssm[geo]'")

METRES = "EPSG:32633"
"""UTM, zone 33 north."""

SHIFTED = (0.5, 0.0, 400000.0, 0.0, -0.5, 5000000.0)
"""Half a metre a pixel, north up."""


def values_of(kind: str, bands: int, height: int = 40, width: int = 56) -> np.ndarray[Any, Any]:
    """Samples [C, H, W] that use the range of their kind, none of them 0."""
    drawn = np.random.default_rng(bands).integers(1, 200, (bands, height, width))
    return (drawn * {"uint16": 300, "int16": 100, "int32": 10000}.get(kind, 1)).astype(kind)


def write_scene(
    path: Path,
    values: np.ndarray[Any, Any],
    *,
    crs: Any = METRES,
    transform: tuple[float, ...] | None = SHIFTED,
    colours: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    scales: tuple[float, ...] = (),
    gcps: Any = None,
    **options: Any,
) -> Path:
    """Write samples [C, H, W] as a GeoTIFF; ``options`` are GDAL's."""
    facts = {"driver": "GTiff", "dtype": values.dtype, "count": len(values), **options}
    facts |= {"height": values.shape[1], "width": values.shape[2]}
    if crs is not None:
        facts["crs"] = crs
    if transform is not None:
        facts["transform"] = rasterio.Affine(*transform)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quietly():
        file = rasterio.open(path, "w", **facts)
    with file:
        if gcps is not None:
            file.gcps = gcps
        if colours:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in colours]
        file.write(values)
        for index, name in enumerate(names, 1):
            file.set_band_description(index, name)
        if scales:
            file.scales = scales
    return path
