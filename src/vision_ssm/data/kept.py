"""Decoded images that the processes of a run keep together, each image once."""

from __future__ import annotations

import os
import struct
import weakref
from multiprocessing import context, reduction
from typing import Any

from PIL import Image

__all__ = ["KeptImages"]

_HEADER = struct.Struct("=8sqII")  # of each image: whose file it is, index, width, height
_PLACE = struct.Struct("=q")  # of each index: where its image begins, or 0


class KeptImages:
    """RGB images by number, decoded, for this process and those that are started from it.

    On Linux they lie in one nameless file in memory, whose size counts for all processes together. It is only ever
    added to, by one write for each image, so that no process waits for another and none leaves a lock behind when it is
    killed. Elsewhere the process that made it keeps images for itself, and the others keep none.

    Args:
        count: how many images there are to number.
        limit: bytes of all that is kept.
    """

    _file: int

    def __init__(self, count: int, limit: int) -> None:
        self._count, self._limit = count, limit
        self._own: dict[int, tuple[tuple[int, int], bytes]] = {}
        self._owner, self._own_bytes = os.getpid(), 0
        if hasattr(os, "memfd_create"):
            self._share(os.memfd_create("vision-ssm-images"), os.urandom(8))
            os.truncate(self._file, _PLACE.size * count)
        else:
            self._file = -1

    def _share(self, file: int, mark: bytes) -> None:
        self._file, self._mark = file, mark
        self._adds: tuple[int, int] | None = None  # the process, and its own way of adding to the file
        weakref.finalize(self, os.close, file)

    @property
    def kept_bytes(self) -> int:
        """What is kept now, by all processes together."""
        return self._own_bytes if self._file < 0 else os.fstat(self._file).st_size - _PLACE.size * self._count

    def get(self, index: int) -> Image.Image | None:
        """Return a copy of an image, or None if it is not kept."""
        if self._file < 0:
            found = self._own.get(index)
            return None if found is None else Image.frombytes("RGB", *found)
        (place,) = _PLACE.unpack(os.pread(self._file, _PLACE.size, _PLACE.size * index))
        header = os.pread(self._file, _HEADER.size, place) if place else b""
        if len(header) != _HEADER.size:
            return None
        mark, whose, width, height = _HEADER.unpack(header)
        if (mark, whose) != (self._mark, index):  # two threads added at once, and the place is another's
            return None
        pixels = os.pread(self._file, 3 * width * height, place + _HEADER.size)
        return Image.frombytes("RGB", (width, height), pixels)

    def put(self, index: int, image: Image.Image) -> None:
        """Keep an RGB image, if there is room for it."""
        needed = 3 * image.width * image.height + (0 if self._file < 0 else _HEADER.size)
        if self.kept_bytes + needed > self._limit:
            return
        if self._file < 0:
            if os.getpid() == self._owner and index not in self._own:
                self._own[index] = image.size, image.tobytes()
                self._own_bytes += needed
            return
        record = _HEADER.pack(self._mark, index, *image.size) + image.tobytes()
        try:
            adding = self._adding()
            if os.write(adding, record) == len(record):
                place = os.lseek(adding, 0, os.SEEK_CUR) - len(record)
                os.pwrite(self._file, _PLACE.pack(place), _PLACE.size * index)
        except OSError:
            self._limit = 0  # no memory, or no more open files: the image itself is at hand, and no more are kept

    def _adding(self) -> int:
        """Return a descriptor that writes at the file's end, and knows where that was, for this process only."""
        if self._adds is None or self._adds[0] != os.getpid():
            adding = os.open(f"/proc/self/fd/{self._file}", os.O_WRONLY | os.O_APPEND)
            weakref.finalize(self, os.close, adding)
            self._adds = os.getpid(), adding
        return self._adds[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is being started shares the file; any other copy begins anew."""
        if context.get_spawning_popen() is None:
            return KeptImages, (self._count, self._limit)
        if self._file < 0:
            return KeptImages, (self._count, 0)
        return _joined, (self._count, self._limit, reduction.DupFd(self._file), self._mark)


def _joined(count: int, limit: int, file: Any, mark: bytes) -> KeptImages:
    kept = KeptImages.__new__(KeptImages)
    kept._count, kept._limit, kept._own, kept._owner, kept._own_bytes = count, limit, {}, 0, 0
    kept._share(file.detach(), mark)
    return kept
