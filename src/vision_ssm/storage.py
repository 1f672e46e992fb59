"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vision_ssm.errors import DataError, VisionSSMError

__all__ = ["require_writable", "whole_file"]


@contextlib.contextmanager
def whole_file(path: str | Path, *, error: type[VisionSSMError] = DataError) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on a clean exit it becomes ``path``, else it is removed.

    A reader, a crash or a full disk therefore never meets half a file: what was at ``path`` before stays until the new
    content is safely on disk. Missing folders are created.

    Raises:
        error: the file cannot be written; says where and why (no space left, read-only, ...).
    """
    path = Path(path)
    # Not the whole name: it may be as long as names can be.
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    part = path.with_name(f".{digest}.{os.getpid()}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            _to_disk(part)
            os.replace(part, path)
            _to_disk(path.parent)
        except OSError as reason:
            raise error(f"cannot write {str(path)!r}: {reason.strerror or reason}.") from reason
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def require_writable(folder: str | Path, *, error: type[VisionSSMError] = DataError) -> None:
    """Create ``folder`` if need be and write an empty file in it, so that a long run does not fail at its end.

    Raises:
        error: with the folder and the reason.
    """
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as reason:
        raise error(
            f"cannot write to output folder {str(folder)!r}: {reason.strerror or reason}; choose another one."
        ) from reason


def _to_disk(path: Path) -> None:
    # Windows cannot open folders; there the rename alone has to do.
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
