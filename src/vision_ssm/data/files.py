"""Which files of a folder are images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from vision_ssm.data.images import IMAGE_SUFFIXES
from vision_ssm.errors import DataError

__all__ = [
    "FolderContent",
    "holds_images",
    "image_files",
    "is_run",
    "is_visible",
    "looked_up",
    "search",
    "skipped_files",
]

_SYSTEM = frozenset(
    name.lower()
    for name in (
        *("__MACOSX", "__pycache__", "lost+found"),
        *(
            "$RECYCLE.BIN",
            "RECYCLER",
            "System Volume Information",
            "Thumbs.db",
            "ehthumbs.db",
            "desktop.ini",
        ),  # Windows
        *("@eaDir", "#recycle", "#snapshot", "@tmp", "@Recycle", "@Recently-Snapshot", "@__thumb"),  # storage servers
    )
)
_OF_A_RUN = frozenset(("config.yaml", "log.jsonl"))


class FolderContent(NamedTuple):
    """What a folder holds, subfolders included.

    Attributes:
        images: by suffix, sorted.
        skipped: how many other files there are of each suffix.
        runs: folders of training runs, which are not searched: their pictures are no data.
    """

    images: list[Path]
    skipped: Counter[str]
    runs: list[Path]


def search(folder: Path) -> FolderContent:
    """List what is in a folder and its subfolders; what is hidden, or left by a system, is left out.

    Raises:
        DataError: a folder cannot be read.
    """
    content = FolderContent([], Counter(), [])
    for current, files in _walk(folder):
        if current != folder and files >= _OF_A_RUN:
            content.runs.append(current)
            continue
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                content.images.append(current / name)
            else:
                content.skipped[suffix] += 1
    content.images.sort()
    return content


def image_files(folder: Path) -> list[Path]:
    """Return the image files (by suffix) in a folder and its subfolders, sorted; see `search`."""
    return search(folder).images


def holds_images(folder: Path) -> bool:
    """Tell whether `search` would find an image, looking no further than the first. Raises DataError as it does."""
    return any(
        os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        for current, files in _walk(folder)
        if current == folder or not files >= _OF_A_RUN
        for name in files
    )


def is_visible(name: str) -> bool:
    """Tell whether a file or folder is meant for people: neither hidden nor left by an archiver or a system."""
    return not name.startswith((".", "__MACOSX")) and name.lower() not in _SYSTEM


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a training run."""
    return all((folder / name).is_file() for name in _OF_A_RUN)


def skipped_files(skipped: Counter[str]) -> str:
    """Write how many files were passed over: ``4 .heic, 1 .txt``; nothing where there are none."""
    # Ties by name: folders list their files in no order that holds everywhere.
    shown = sorted(skipped.items(), key=lambda found: (-found[1], found[0] or "without suffix"))[:6]
    listed = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in shown]
    others = skipped.total() - sum(count for _, count in shown)
    return ", ".join([*listed, *([f"{others:,} others"] if others else [])])


def _walk(folder: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    """Yield every visible folder with its visible files, each once: a link to a folder above would have no end."""
    visited: set[str] = set()
    for current, subfolders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        visible = frozenset(filter(is_visible, files))
        is_a_run = Path(current) != folder and visible >= _OF_A_RUN
        subfolders[:] = [] if is_a_run else sorted(filter(is_visible, subfolders))
        yield Path(current), visible


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"cannot read the folder {str(error.filename)!r}: {error.strerror}.") from error


def looked_up(spec: str | Path) -> tuple[Path, Literal["folder", "file", "nothing"]]:
    """Return the path that a user means, ``~`` resolved, and what is there.

    Raises:
        DataError: it cannot be looked up: a home that nobody has, a name too long, a folder that may not be entered.
    """
    try:
        path = Path(spec).expanduser()
        return path, "folder" if path.is_dir() else "file" if path.exists() else "nothing"
    except RuntimeError as error:  # ~name of nobody, or no home at all
        raise DataError(
            f"data {str(spec)!r} starts with a home folder that cannot be found; write the path."
        ) from error
    except OSError as error:
        raise DataError(f"data {str(spec)!r} cannot be looked up: {error.strerror}.") from error
