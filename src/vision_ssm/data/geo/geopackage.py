"""Polygons in a GeoPackage: an SQLite file with tables of fixed names. Source: OGC 12-128r17 (GeoPackage 1.3)."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_ssm.errors import DataError

__all__ = ["Feature", "write_geopackage"]

_APPLICATION, _VERSION = 0x47504B47, 10300  # "GPKG", 1.3
_OF_NOTHING = -1  # an undefined cartesian system: pixels
_OWN = 100000  # systems without a number at EPSG

_WGS84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
    'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433],AUTHORITY["EPSG","4326"]]'
)

_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
  description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
  CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
  CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name), CONSTRAINT uk_gc_table_name UNIQUE (table_name),
  CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
  CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
"""
_KINDS: Mapping[type, str] = {str: "TEXT", int: "INTEGER", float: "DOUBLE"}


class Feature(NamedTuple):
    """A polygon: rings [n, 2], closed, the outer one first, and its properties."""

    rings: Sequence[NDArray[np.float64]]
    properties: Mapping[str, Any]


def write_geopackage(
    path: Path, layer: str, columns: Mapping[str, type], features: Iterable[Feature], crs: Any
) -> None:
    """Write polygons as the one layer of a new file.

    Args:
        path: the file; what is there is replaced.
        layer: its name, letters only.
        columns: names of the properties, and of what type their values are: str, int or float.
        features: with these properties each, in this order; None for an unknown value.
        crs: of their coordinates, rasterio's; None for none.

    Raises:
        DataError: it cannot be written.
    """
    path.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
            database.execute(f"PRAGMA user_version = {_VERSION}")
            database.executescript(_TABLES)
            system = _reference_systems(database, crs)
            _layer(database, layer, columns, features, system)
    except sqlite3.Error as error:
        raise DataError(f"cannot write the polygons: {error}") from error


def _reference_systems(database: sqlite3.Connection, crs: Any) -> int:
    """The three that every file has, and that of the layer, whose number is returned."""
    rows = [
        ("WGS 84", 4326, "EPSG", 4326, _WGS84, "longitude and latitude in degrees"),
        ("undefined cartesian", -1, "NONE", -1, "undefined", "undefined cartesian coordinates"),
        ("undefined geographic", 0, "NONE", 0, "undefined", "undefined geographic coordinates"),
    ]
    number = _OF_NOTHING
    if crs is not None:
        code = crs.to_epsg()
        number = _OWN if code is None else int(code)
        if number != 4326:
            authority = ("NONE", _OWN) if code is None else ("EPSG", number)
            rows.append((crs.to_string()[:80], number, *authority, crs.to_wkt(), ""))
    database.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", rows)
    return number


def _layer(
    database: sqlite3.Connection, layer: str, columns: Mapping[str, type], features: Iterable[Feature], system: int
) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, last_change, srs_id) VALUES (?, ?, ?, ?, ?)",
        (layer, "features", layer, now, system),
    )
    database.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (layer, system))
    typed = "".join(f', "{name}" {_KINDS[kind]}' for name, kind in columns.items())
    database.execute(f'CREATE TABLE "{layer}" (fid INTEGER PRIMARY KEY AUTOINCREMENT, geom BLOB{typed})')
    insert = f'INSERT INTO "{layer}" VALUES (NULL, ?{", ?" * len(columns)})'
    for feature in features:
        outer = feature.rings[0]
        low, high = np.minimum(low, outer.min(0)), np.maximum(high, outer.max(0))
        database.execute(insert, (_geometry(feature.rings, system), *feature.properties.values()))
    if np.isfinite(low).all():  # there is one
        bounds = (*low.tolist(), *high.tolist())
        database.execute("UPDATE gpkg_contents SET min_x = ?, min_y = ?, max_x = ?, max_y = ?", bounds)


def _geometry(rings: Sequence[NDArray[np.float64]], system: int) -> bytes:
    """Header of GeoPackage (little endian, no envelope), then well-known binary."""
    parts = [struct.pack("<2sBBi", b"GP", 0, 1, system), struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.ascontiguousarray(ring, "<f8").tobytes()]
    return b"".join(parts)
