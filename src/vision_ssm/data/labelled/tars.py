"""Tar files of images with classes that others wrote, in the layout of WebDataset: what is where in them.

    imagenet-train-000000.tar    n01440764_18.jpg n01440764_18.cls n01440764_36.jpg ...
    imagenet-validation-00.tar   ...

The part of the data is a word of a file's name. ``.cls`` holds the number of a class, or its name. Nothing is copied:
lists of offsets are written beside the files, which makes their folder one of `vision_ssm.data.shards`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from vision_ssm.data.images import IMAGE_SUFFIXES
from vision_ssm.data.labelled.packed import SUFFIX
from vision_ssm.data.places import is_remote
from vision_ssm.data.shards import require_unlisted, write_index, write_list
from vision_ssm.data.tar_index import TAR_SUFFIXES, Member, index_of
from vision_ssm.errors import DataError
from vision_ssm.storage import require_writable

__all__ = ["index_tars"]

_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class _Pair(NamedTuple):
    image: Member
    target: Member
    told: str


def index_tars(
    folder: str | Path,
    task: str,
    classes: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write beside tar files what is where in them, so that training and evaluation take their folder.

    Args:
        folder: with the tar files; lists of the same names and ``shards.json`` are written into it.
        task: that they are for, one of images with a class each.
        classes: file with the names of the classes, a JSON list or one in a line; None calls them by their numbers, or
            takes the names that the tar files hold, in alphabetical order.
        on_progress: called with (tar files done, in all).

    Returns:
        how many images each part has.

    Raises:
        DataError: an address, no tar file, one of no part while others have one, one that is damaged, an image without
            a class or the other way round, a class that is not among ``classes``, or a list that somebody else's would
            overwrite.
    """
    if is_remote(folder):
        raise DataError(f"{folder!r} is an address, and lists are written beside tar files: give a folder of copies.")
    place = Path(folder)
    require_writable(place)
    require_unlisted(place)
    parts = _parts(place)
    found: dict[Path, list[_Pair]] = {}
    total = sum(len(tars) for tars in parts.values())
    for tar in (tar for tars in parts.values() for tar in tars):
        _require_ours(tar.with_suffix(".json"))
        found[tar] = _pairs(tar)
        if on_progress is not None:
            on_progress(len(found), total)
    names, number_of = _classes(found, None if classes is None else _names(Path(classes)))
    written: dict[str, dict[str, Any]] = {}
    for part, tars in parts.items():
        digest, shards = blake2b(digest_size=16), []
        for tar in tars:
            rows = [[*pair.image, *pair.target[1:], number_of[pair.told]] for pair in found[tar]]
            digest.update(f"{tar.name} {tar.stat().st_size} {rows!r}\n".encode(errors="surrogatepass"))
            shards.append(write_list(tar, rows))
        written[part] = {"fingerprint": digest.hexdigest(), "shards": shards}
    about = {"class_names": list(names), "mirror_safe": True}
    return write_index(place, written, task=task, suffix=SUFFIX, name=place.resolve().name, about=about)


def _parts(folder: Path) -> dict[str, list[Path]]:
    """Return the tar files of each part, in the order of their names."""
    tars = sorted(path for path in folder.iterdir() if path.suffix.lower() in TAR_SUFFIXES)
    if not tars:
        raise DataError(f"there are no .tar files in {str(folder)!r}; packed ones (.tar.gz) have to be unpacked first.")
    told = {tar: [_WORDS[word] for word in re.split(r"[^a-z]+", tar.stem.lower()) if word in _WORDS] for tar in tars}
    if not any(told.values()):
        return {"train": tars}
    for tar, words in told.items():
        if len(set(words)) != 1:
            raise DataError(
                f"the name of {str(tar)!r} must say of which part it is, by one of the words {', '.join(_WORDS)}; "
                f"found {' and '.join(dict.fromkeys(words)) or 'none'}."
            )
    return {part: mine for part in ("train", "val", "test") if (mine := [tar for tar in tars if told[tar][0] == part])}


def _pairs(tar: Path) -> list[_Pair]:
    """Return image and class of each sample, in the order of the file."""
    samples: dict[str, dict[str, Member]] = {}
    for member in index_of(str(tar)):
        folder, _, name = member.name.rpartition("/")
        key, _, kind = name.partition(".")
        if not key:  # a hidden file
            continue
        word = "image" if f".{kind.lower()}" in IMAGE_SUFFIXES else "class" if f".{kind.lower()}" == SUFFIX else ""
        sample = samples.setdefault(f"{folder}/{key}", {})
        if word in sample:
            raise DataError(f"{str(tar)!r} holds two files for the {word} of {member.name!r}.")
        if word:
            sample[word] = member
    found = []
    with tar.open("rb") as file:
        for sample in samples.values():
            if not sample:  # files of other kinds only
                continue
            if len(sample) < 2:
                (there,) = sample.values()
                lacks = f"a {SUFFIX} file with its class" if "image" in sample else "an image"
                raise DataError(f"in {str(tar)!r} there is {there.name!r}, and {lacks} is missing beside it.")
            file.seek(sample["class"].offset)
            told = file.read(sample["class"].size).decode("utf-8", "replace").strip()
            if not told:
                raise DataError(f"{sample['class'].name!r} in {str(tar)!r} is empty.")
            found.append(_Pair(sample["image"], sample["class"], told))
    if not found:
        raise DataError(f"{str(tar)!r} holds no image with a {SUFFIX} file beside it.")
    return found


def _classes(found: dict[Path, list[_Pair]], given: Sequence[str] | None) -> tuple[Sequence[str], dict[str, int]]:
    """Return the names of the classes, and the number of each text that the tar files hold."""
    first = {pair.told: f"{str(tar)!r} ({pair.target.name})" for tar, pairs in found.items() for pair in pairs}
    numbers = {told: int(told) for told in first if told.isascii() and told.isdecimal()}
    if len(numbers) == len(first):
        names = given or [str(number) for number in range(max(numbers.values()) + 1)]
        for told, number in numbers.items():
            if number >= len(names):
                raise DataError(f"{first[told]} has class {number}, and only {len(names)} names of classes are given.")
        return names, numbers
    names = given or sorted(first)
    place = {name: number for number, name in enumerate(names)}
    for told, where in first.items():
        if told not in place:
            raise DataError(f"{where} has class {told!r}, which is none of the {len(names)} names of classes given.")
    return names, place


def _names(path: Path) -> list[str]:
    """Read names of classes."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the names of classes in {str(path)!r}: {error}.") from error
    try:
        names = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except ValueError as error:
        raise DataError(f"{str(path)!r} is damaged: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{str(path)!r} must hold a list of names, got {type(names).__name__}.")
    kept = [name for name in names if name]
    if not kept or len(set(kept)) < len(kept):
        raise DataError(f"{str(path)!r} must hold names, each once; it has {len(kept)}, {len(set(kept))} of them new.")
    return kept


def _require_ours(path: Path) -> None:
    """Raise DataError where a list would overwrite somebody else's file."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        there = None
    if not isinstance(there, list) or not all(isinstance(row, list) and len(row) == 6 for row in there):
        raise DataError(f"{str(path)!r} is in the place of the list that is to be written; move it away.")
