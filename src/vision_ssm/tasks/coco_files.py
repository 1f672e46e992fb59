"""Where COCO files and their images are in a data folder, and reading one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vision_ssm.data.parts import EXACT, IMAGE_FOLDERS, is_called, named_folder, part_folder, visible_folders
from vision_ssm.errors import DataError

__all__ = ["CocoPart", "find_coco", "image_file", "read_json"]

_OF_COCO = re.compile(r"instances|annotations|annotation|coco", re.IGNORECASE)


class CocoPart(NamedTuple):
    """A COCO file and the folders in which its images may be."""

    annotations: Path
    folders: tuple[Path, ...]


def find_coco(place: Path, folders: Sequence[Path]) -> dict[str, CocoPart]:
    """Return COCO's files by part, for each the folders in which its images may be; nothing where there are none.

    Args:
        place: ``annotations/train.json`` is below it, or ``train/_annotations.coco.json``.
        folders: those in it.

    Raises:
        DataError: two files could be meant for one part, or there is none to train on.
    """
    found: dict[str, CocoPart] = {}
    listed = named_folder(folders, ("annotations",), place)
    images = named_folder(folders, IMAGE_FOLDERS, place)
    for file in sorted(listed.glob("*.json")) if listed else []:
        for part in EXACT:
            if is_called(_OF_COCO.sub("", file.stem), part):
                if part in found:
                    raise DataError(f"{str(found[part].annotations)!r} and {file.name!r} are both of {part}; keep one.")
                inner = [
                    part_folder(folders, part),
                    part_folder(visible_folders(images), part) if images else None,
                    images,
                    place,
                ]
                found[part] = CocoPart(file, tuple(folder for folder in inner if folder))
    for part in EXACT:  # the file beside the images
        folder = part_folder(folders, part)
        beside = sorted(folder.glob("*coco*.json")) if folder and not listed else []
        if folder and beside:
            found[part] = CocoPart(beside[0], (folder,))
    if found and "train" not in found:
        listing = ", ".join(str(part.annotations) for part in found.values())
        raise DataError(f"{str(place)!r} has {listing} and nothing to train on; expected train.json beside it.")
    return found


def read_json(path: Path) -> tuple[Any, str]:
    """Return the content of a JSON file, and a digest of its bytes.

    Raises:
        DataError: naming the file: unreadable, or no JSON text.
    """
    try:
        raw = path.read_bytes()
        return json.loads(raw), blake2b(raw, digest_size=16).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is no JSON text ({error}).") from error


def image_file(part: CocoPart, name: str) -> Path:
    """Return the image file that ``part`` calls ``name``.

    Raises:
        DataError: naming it and the COCO file: it is missing, or not in the data folder.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{str(part.annotations)!r} names the image {name!r}, which is not in the data folder.")
    candidates = [folder / inner for inner in (relative, relative.name) for folder in part.folders]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        places = " or ".join(f"{str(folder)!r}" for folder in part.folders)
        raise DataError(f"image {name!r} of {str(part.annotations)!r} is missing; looked for it in {places}.")
    return found
