"""Which images a job is about: files, addresses, members of tar files, rows of parquet tables; listed, not opened."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vision_ssm.data.encoded import Encoded
from vision_ssm.data.files import holds_images, is_visible
from vision_ssm.data.images import IMAGE_SUFFIXES
from vision_ssm.data.places import file_system, is_remote, open_place, reaching, read_part
from vision_ssm.data.shards import INDEX, MASK_SUFFIX, is_packed, shard_files
from vision_ssm.data.tar_index import TAR_SUFFIXES, index_of
from vision_ssm.errors import DataError
from vision_ssm.inference.inputs import Failure, Named, find_images

__all__ = ["Reference", "list_references", "opened", "parquet"]

_PARQUET = ".parquet"
_ARCHIVES = (*TAR_SUFFIXES, _PARQUET)

_COLUMNS = ("path", "file", "file_name", "url", "image")
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
        inputs: image files, folders, tar files of images, parquet tables with a column of paths or bytes, patterns of
            such files, and addresses of any of them (s3://, gs://, hf://, https://). Masks beside images in tar files
            (`vision_ssm.data.shards`) are no images. A folder that holds tar files or tables and no images stands for
            these, in the order of their names; one of shards for those that it lists.
        failures: extended by folders without images and patterns without files.

    Raises:
        DataError: no image at all, a tar file that is missing or truncated, or a table without such a column.
    """
    found: list[Reference] = []
    for given in inputs:
        for place in _places(str(given)):
            suffix = Path(place).suffix.lower()
            if suffix in TAR_SUFFIXES:
                found += _of_tar(place)
            elif suffix == _PARQUET:
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
    """The files that an input stands for, or the input itself."""
    if is_remote(given):
        yield from _at_address(given)
    elif os.path.isdir(given):
        yield from _archives(given) or [given]
    elif glob.has_magic(given) and not os.path.lexists(given):
        yield from [name for name in sorted(glob.glob(given, recursive=True)) if not os.path.isdir(name)] or [given]
    else:
        yield given


def _archives(folder: str) -> Sequence[str]:
    """The tar files and tables in a folder and its subfolders, where there are no images in them."""
    if is_packed(folder):
        return shard_files(folder)
    root = Path(folder)
    try:
        if holds_images(root):
            return []
    except DataError:  # `find_images` lists it among the failures
        return []
    known = [path for path in root.rglob("*") if path.suffix.lower() in _ARCHIVES and path.is_file()]
    return sorted(str(path) for path in known if all(map(is_visible, path.relative_to(root).parts)))


def _at_address(address: str) -> Iterator[str]:
    wanted = {*IMAGE_SUFFIXES, *_ARCHIVES}
    system, path = file_system(address)
    with reaching(address):
        if "*" in address:
            found = system.glob(path)
        elif Path(path).suffix.lower() in wanted or not system.isdir(path):
            found = [path]
        else:
            found = system.find(path)
            if f"{path.rstrip('/')}/{INDEX}" in found:
                yield from shard_files(address)
                return
            found = [name for name in found if Path(name).suffix.lower() in wanted]
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
    with _table(place) as table:
        text, content = _columns(table.schema_arrow, place)
        rows = table.metadata.num_rows
        named = [None] * rows if text is None else _flat(table.read(columns=[text]), text)
    found: list[Reference] = []
    for row, name in enumerate(named):
        if content is None and name:
            found.append(Reference(name, "address" if is_remote(name) else "file", name))
        else:  # reading a row without a path tells that it has no image
            found.append(Reference(name or f"{place}/{row}", "row", place, row, 0, content or text or ""))
    return found


@contextmanager
def _table(place: str) -> Iterator[Any]:
    """Open a parquet table; what goes wrong with it in the block is a DataError that names it."""
    pq = parquet()
    try:
        with reaching(place), open_place(place) as file:
            yield pq.ParquetFile(file)
    except DataError:
        raise
    except (ValueError, KeyError) as error:  # what pyarrow says of damaged files, and of a column that is no more
        raise DataError(f"{place!r} is no parquet table, or damaged: {error}.") from error


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
    text = next((name for known in _COLUMNS for name in texts if name.rpartition(".")[2] == known), None)
    if len(binary) > 1 or not (binary or text):
        told = ", ".join(f"{name} ({kind})" for name, kind in flat.items())
        raise DataError(
            f"the table {place!r} must have one column of bytes, the content of image files, or a column of paths "
            f"called {', '.join(_COLUMNS)}; its columns are {told}."
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
    with _table(place) as table:
        about, bounds = table.metadata, [0]
        for number in range(about.num_row_groups):
            bounds.append(bounds[-1] + about.row_group(number).num_rows)
    return list(itertools.pairwise(bounds))


@lru_cache(maxsize=1)
def _group(place: str, column: str, number: int) -> list[Any]:
    """The bytes of a row group, which is what can be read at once; rows are asked for one after the other."""
    with _table(place) as table:
        return _flat(table.read_row_group(number, columns=[column]), column)


def parquet() -> Any:
    """Return pyarrow's module for parquet files. Raises DataError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install 'vision-ssm[shards]'.") from error
    return pyarrow.parquet
