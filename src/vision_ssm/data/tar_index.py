"""What a tar file holds and where: with that, any member is read by one seek, in any order.

The headers are walked once, from the first to the last; nothing between them is read.
"""

from __future__ import annotations

import tarfile
from typing import NamedTuple

from vision_ssm.data.places import open_place, reaching, state_of
from vision_ssm.errors import DataError

__all__ = ["TAR_SUFFIXES", "Member", "index_of"]

TAR_SUFFIXES = (".tar",)
"""Packed ones (.tar.gz) have no offsets: their members cannot be read by themselves."""


class Member(NamedTuple):
    """A file in a tar file: its name there, where its content begins, and its length in bytes."""

    name: str
    offset: int
    size: int


def index_of(place: str) -> tuple[Member, ...]:
    """Return the files in a tar file, in its order.

    Args:
        place: a path or an address.

    Raises:
        DataError: naming the file: missing, no tar file, or truncated.
    """
    size, _ = state_of(place)
    if size < 0:
        raise DataError(f"the tar file {place!r} is missing.")
    members: list[Member] = []
    with reaching(place), open_place(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    if entry.isreg():
                        members.append(Member(entry.name, entry.offset_data, entry.size))
                file.seek(archive.offset)  # behind the last member a block of zeros says that it is over
                closed = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except tarfile.ReadError as error:
            if members:
                raise _truncated(place, members) from error
            raise DataError(f"{place!r} is no tar file, or a packed one: unpack it (gunzip); {error}.") from error
    if any(member.offset + member.size > size for member in members) or not closed:
        raise _truncated(place, members)
    return tuple(members)


def _truncated(place: str, members: list[Member]) -> DataError:
    after = f" behind {members[-1].name!r}" if members else ""
    return DataError(f"the tar file {place!r} is truncated{after}: copy it again.")
