"""Which images a job is about: files, addresses, members of tar files, rows of parquet tables; listed, not opened."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vision_ssm.data.encoded import Encoded
from vision_ssm.data.images import IMAGE_SUFFIXES
from vision_ssm.data.places import file_system, is_remote, open_place, reaching, read_part
from vision_ssm.data.shards import MASK_SUFFIX
from vision_ssm.data.tar_index import TAR_SUFFIXES, index_of
from vision_ssm.errors import DataError
from vision_ssm.inference.inputs import Failure, Named, find_images

__all__ = ["COLUMNS", "PARQUET_SUFFIX", "Reference", "list_references", "opened"]

PARQUET_SUFFIX = ".parquet"

COLUMNS = ("path", "file", "file_name", "url", "image")
"""Columns of text that are taken for paths or addresses, the first that a table has. A column of bytes comes first."""


class Reference(NamedTuple):
    """One image of a job.

    Attributes:
        name: in the output.
        kind: ``file``, ``address``, ``part`` of a file, or ``row`` of a parquet table.
        place: path or address of the file that holds it.
        offset: of a part in bytes, of a row in rows.
        size: of a part in bytes.
        column: of a row, dotted where it is part of another.
    """

    name: str
    kind: Literal["file", "address", "part", "row"]
    place: str
    offset: int = 0
    size: int = 0
    column: str = ""


def list_references(inputs: Iterable[str | Path], failures: list[Failure]) -> list[Reference]:
    """List images, in an order that only the inputs decide.

    Args:
        inputs: image files, folders, patterns, tar files of images, parquet tables with a column of paths or bytes, and
            addresses of any of them (s3://, gs://, hf://, https://). Masks beside images in tar files
            (`vision_ssm.data.shards`) are no images. A folder that holds no images but tar files
            stands for these, in the order of their names.
        failures: extended by folders without images and patterns without files.

    Raises:
        DataError: no image at all, a tar file that is truncated, or a table without such a column.
    """
    found: list[Reference] = []
    for given in inputs:
        for place in _places(str(given)):
            suffix = Path(place).suffix.lower()
            if suffix in TAR_SUFFIXES:
                found += _of_tar(place)
            elif suffix == PARQUET_SUFFIX:
                found += _of_table(place)
            elif is_remote(place):
                found.append(Reference(place, "address", place))
            else:
                found += [Reference(named.name, "file", str(named.image)) for named in find_images(place, failures)]
    if not found and not failures:
        raise DataError("no images; give image files, folders, tar files, parquet tables, or addresses of them.")
    return found


def opened(references: Sequence[Reference]) -> list[Named]:
    """Return images that read themselves when they are asked for, called ``"0"``, ``"1"``, ..."""
    return [Named(str(number), _image(reference)) for number, reference in enumerate(references)]


def _image(reference: Reference) -> str | Encoded:
    name, kind, place, offset, size, column = reference
    if kind == "file":
        return place
    if kind == "row":
        return Encoded(name, partial(_cell, place, column, offset))
    return Encoded(name, partial(read_part, place, offset, size if kind == "part" else None))


def _places(given: str) -> Iterator[str]:
    """The input itself, or the tar files in a folder of them, or what is at an address that ends or looks so."""
    if is_remote(given):
        yield from _at_address(given)
    elif os.path.isdir(given) and (tars := _tars(given)):
        yield from tars
    else:
        yield given


def _tars(folder: str) -> list[str]:
    names = sorted(os.listdir(folder))
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return []
    return [os.path.join(folder, name) for name in names if Path(name).suffix.lower() in TAR_SUFFIXES]


def _at_address(address: str) -> Iterator[str]:
    wanted = {*IMAGE_SUFFIXES, *TAR_SUFFIXES, PARQUET_SUFFIX}
    system, path = file_system(address)
    with reaching(address):
        if "*" in address:
            found = system.glob(path)
        elif Path(path).suffix.lower() in wanted or not system.isdir(path):
            found = [path]
        else:
            found = [name for name in system.find(path) if Path(name).suffix.lower() in wanted]
    if not found:
        raise DataError(f"there are no images at {address!r}.")
    yield from (system.unstrip_protocol(name) for name in sorted(found))


def _of_tar(place: str) -> list[Reference]:
    return [
        Reference(f"{place}/{name}", "part", place, offset, size)
        for name, offset, size in index_of(place)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.endswith(MASK_SUFFIX)
    ]


def _of_table(place: str) -> list[Reference]:
    """Rows of a table of bytes; of a table of paths what they name, as on a command line."""
    pq = parquet()
    try:
        with open_place(place) as file:
            table = pq.ParquetFile(file)
            text, content = _columns(table.schema_arrow, place)
            names = None if text is None else table.read(columns=[text])
            rows = table.metadata.num_rows
    except OSError as error:
        raise DataError(f"cannot read the table {place!r}: {error.strerror or error}.") from error
    except ValueError as error:  # what pyarrow says of damaged files
        raise DataError(f"{place!r} is no parquet table, or damaged: {error}.") from error
    named = [None] * rows if names is None or text is None else _flat(names, text)
    if content is not None:
        return [
            Reference(str(name or f"{place}/{row}"), "row", place, row, 0, content) for row, name in enumerate(named)
        ]
    kinds = [("address" if is_remote(str(name)) else "file", str(name)) for name in named]
    return [Reference(name, kind, name) for kind, name in kinds]  # type: ignore[arg-type]


def _columns(schema: Any, place: str) -> tuple[str | None, str | None]:
    """Return the columns of (names, bytes) of a table, dotted where they are parts of another, None for none."""
    import pyarrow.types as kinds

    flat: dict[str, Any] = {}
    for field in schema:
        if kinds.is_struct(field.type):  # how Hugging Face's data sets hold images: {bytes, path}
            flat |= {f"{field.name}.{inner.name}": inner.type for inner in field.type}
        else:
            flat[field.name] = field.type
    binary = [name for name, kind in flat.items() if kinds.is_binary(kind) or kinds.is_large_binary(kind)]
    texts = [name for name, kind in flat.items() if kinds.is_string(kind) or kinds.is_large_string(kind)]
    text = next((name for known in COLUMNS for name in texts if name.rpartition(".")[2] == known), None)
    if len(binary) > 1 or not (binary or text):
        told = ", ".join(f"{name} ({kind})" for name, kind in flat.items())
        raise DataError(
            f"the table {place!r} must have one column of bytes, the content of image files, or a column of paths "
            f"called {', '.join(COLUMNS)}; its columns are {told}."
        )
    return text, binary[0] if binary else None


def _flat(table: Any, column: str) -> list[Any]:
    values = table.column(column.partition(".")[0]).to_pylist()
    inner = column.partition(".")[2]
    return [value and value[inner] for value in values] if inner else values


def _cell(place: str, column: str, row: int) -> bytes:
    for number, (first, behind) in enumerate(_groups(place)):
        if first <= row < behind:
            content = _group(place, column, number)[row - first]
            if not content:
                raise DataError(f"row {row} of the table {place!r} has no image.")
            return bytes(content)
    raise DataError(f"the table {place!r} has no row {row}: it was written anew.")


@lru_cache(maxsize=64)
def _groups(place: str) -> list[tuple[int, int]]:
    """(first, behind the last) row of each row group."""
    with open_place(place) as file:
        about = parquet().ParquetFile(file).metadata
        bounds = [0]
        for number in range(about.num_row_groups):
            bounds.append(bounds[-1] + about.row_group(number).num_rows)
    return list(itertools.pairwise(bounds))


@lru_cache(maxsize=1)
def _group(place: str, column: str, number: int) -> list[Any]:
    """The bytes of a row group, which is what can be read at once; rows are asked for one after the other."""
    try:
        with open_place(place) as file:
            return _flat(parquet().ParquetFile(file).read_row_group(number, columns=[column]), column)
    except OSError as error:
        raise DataError(f"cannot read the table {place!r}: {error.strerror or error}.") from error


def parquet() -> Any:
    """Return pyarrow's module for parquet files. Raises DataError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install 'vision-ssm[shards]'.") from error
    return pyarrow.parquet
