"""Where files lie: on this machine, or at an address that fsspec knows (s3://, gs://, hf://, https://, ...)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from vision_ssm.errors import DataError

__all__ = ["file_system", "is_remote", "open_place", "reaching", "read_part", "state_of"]

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters or more: C:/ is a drive


def is_remote(place: str | Path) -> bool:
    """Tell whether a place is an address instead of a path."""
    return isinstance(place, str) and _ADDRESS.match(place) is not None


def file_system(address: str) -> tuple[Any, str]:
    """Return what reads an address, a file system of fsspec, and the path in it.

    Raises:
        DataError: fsspec, or the package that it needs for such addresses, is not installed, or it knows none.
    """
    try:
        from fsspec.core import url_to_fs

        found: tuple[Any, str] = url_to_fs(address)
    except ImportError as error:
        raise DataError(
            f"{address!r} is read by fsspec, which says: {error}. Install that package: s3fs for s3://, gcsfs for "
            "gs://, huggingface_hub for hf://, aiohttp for https://."
        ) from error
    except ValueError as error:  # no such protocol
        raise DataError(f"{address!r} cannot be opened: {error}.") from error
    return found


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Within the block, what goes wrong with a file, or an address, is a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {place!r}: {_told(error.strerror or error)}.") from error
    except Exception as error:
        if not is_remote(place):
            raise
        # Behind fsspec is a package for each kind of address, with exceptions of its own.
        raise DataError(f"cannot read {place!r}: {_told(error)}.") from error


def _told(error: object) -> str:
    return str(error).strip().rstrip(".")


def open_place(place: str) -> BinaryIO:
    """Open a file for reading, wherever it is. Raises OSError as `open` does, or DataError as `file_system`."""
    if not is_remote(place):
        return Path(place).open("rb")
    system, path = file_system(place)
    return cast(BinaryIO, system.open(path, "rb"))


def read_part(place: str, offset: int = 0, size: int | None = None) -> bytes:
    """Return ``size`` bytes of a file from ``offset`` on; None for all that follow.

    Raises:
        DataError: it cannot be read, or ends before.
    """
    with reaching(place):
        if is_remote(place):  # one request, instead of opening, which asks first and reads ahead
            system, path = file_system(place)
            content: bytes = system.cat_file(path, start=offset, end=None if size is None else offset + size)
        else:
            with Path(place).open("rb") as file:
                file.seek(offset)
                content = file.read() if size is None else file.read(size)
    if size is not None and len(content) < size:
        raise DataError(f"{place!r} is truncated: it ends {size - len(content):,} bytes before what it should hold.")
    return content


def state_of(place: str) -> tuple[int, str]:
    """Return (bytes, what changes when the file is written anew); (-1, "") where there is no such file.

    Raises:
        DataError: an address whose file system cannot be used.
    """
    try:
        if not is_remote(place):
            status = os.stat(place)
            return status.st_size, str(status.st_mtime_ns)
        system, path = file_system(place)
        with reaching(place):
            try:
                about = system.info(path)
            except FileNotFoundError:
                return -1, ""
        tag = about.get("ETag") or about.get("etag") or about.get("mtime") or about.get("LastModified") or ""
        return int(about.get("size") or 0), str(tag)
    except OSError:
        return -1, ""
