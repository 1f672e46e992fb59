"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vision_ssm.errors import DataError, VisionSSMError

__all__ = ["NAME_BYTES", "require_writable", "to_disk", "what_else", "whole_file"]

NAME_BYTES = 255
"""Length of the longest file name that the usual file systems take."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")  # a path has one slash of two left; one letter is a drive


@contextlib.contextmanager
def whole_file(path: str | Path, *, error: type[VisionSSMError] = DataError) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on a clean exit it becomes ``path``, else it is removed.

    A reader, a crash or a full disk therefore never meets half a file: what was at ``path`` before stays until the new
    content is safely on disk. Missing folders are created.

    Raises:
        error: the file cannot be written; says where and why (no space left, read-only, ...).
    """
    path = Path(path)
    part = path.with_name(f".{_short(path.name)}.{os.getpid()}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            to_disk(part)
            os.replace(part, path)
            to_disk(path.parent)
        except OSError as reason:
            raise error(f"cannot write {str(path)!r}: {reason.strerror or reason}.") from reason
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def require_writable(folder: str | Path, *, error: type[VisionSSMError] = DataError) -> None:
    """Make sure that files can be written to ``folder``, so that a long run does not fail at its end.

    A file is opened in it, without a name where the system can do that, so that a process killed meanwhile leaves
    nothing behind. A folder that was not there is not there afterwards: what fails before its work leaves none.

    Raises:
        error: with the folder and the reason; also for an address, which nothing is written to.
    """
    folder = Path(folder)
    if _ADDRESS.match(str(folder)):
        raise error(f"cannot write to {str(folder)!r}, which is an address; give a folder of this machine.")
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as reason:
        raise error(
            f"cannot write to output folder {str(folder)!r}: {reason.strerror or reason}; choose another one."
        ) from reason
    finally:
        for path in made:  # the innermost first
            with contextlib.suppress(OSError):  # not made after all, or somebody uses it
                path.rmdir()


def what_else(path: str | Path) -> str | None:
    """Say what is at ``path`` if it is there and neither a file nor a folder: opening a pipe would wait for ever.

    Links are followed. Returns:
        such as "a named pipe"; None for files, folders, and where nothing is or can be seen.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # what is the matter, opening it says
        return None
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None


def _short(name: str) -> str:
    """The name, or in its place a digest where what is added to it could make it too long."""
    content = os.fsencode(name)
    return name if len(content) <= NAME_BYTES // 2 else hashlib.blake2b(content, digest_size=16).hexdigest()


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would outlast a loss of power."""
    # Windows cannot open folders; there the rename alone has to do.
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
