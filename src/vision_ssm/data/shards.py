"""Data sets as tar files, in the layout of WebDataset, and where in them each sample is.

    shards.json                            task, what all samples share, and the tar files of each split
    train-00000.tar  train-00000.json      00000000.jpg 00000000.cls 00000001.jpg ...; where each of them begins
    val-00000.tar    val-00000.json

Others read the tar files from front to back. Here the lists of offsets make any sample one read of its bytes, so the
order of an epoch is that of `vision_ssm.data.loader.epoch_order`, as for a folder: the same on any number of workers,
divided among processes without a shard of one being the other's, and resumed at any sample. A buffer that shuffles what
comes from front to back would have none of that, for the sake of media that cannot seek. What it costs is a request
for each image where the shards are at an address: as many loading processes as hide that.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.encoded import Encoded
from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.data.places import is_remote, read_part, state_of
from vision_ssm.errors import DataError
from vision_ssm.storage import whole_file

__all__ = [
    "INDEX",
    "MASK_SUFFIX",
    "SHARD_BYTES",
    "Packed",
    "ShardSplit",
    "is_packed",
    "open_shards",
    "packed_for",
    "require_unlisted",
    "shard_files",
    "splits_of_shards",
    "write_index",
    "write_list",
    "write_shards",
]

INDEX = "shards.json"
"""Name of the file that makes a folder one of shards."""

MASK_SUFFIX = ".mask.png"
"""Of targets that are pictures themselves: the image beside one may be called ``.png``."""

SHARD_BYTES = 2**28
"""A tar file ends with the sample that makes it at least so large."""

_BEGUN = ".packing"
"""In a folder that is being packed, or was when it was ended: it tells that its tar files and lists are of that."""

_VERSION = 1


class Packed(NamedTuple):
    """One sample on its way into a shard.

    Attributes:
        name: of its image file.
        image: the content of that file.
        target: the content of the file of its target.
        value: what of the target is wanted before anything is read, as a plain JSON value.
        scene: whether the file is read as a scene.
    """

    name: str
    image: bytes
    target: bytes
    value: Any = None
    scene: bool = False


class _Entry(NamedTuple):
    tar: str
    name: str
    offset: int
    size: int
    target_offset: int
    target_size: int
    value: Any
    scene: bool = False


@dataclass(frozen=True)
class ShardSplit:
    """One split of a folder of shards.

    Attributes:
        name: of the data.
        place: the folder or its address.
        about: what all samples share, as the task wrote it.
        fingerprint: of the samples that were packed, see `vision_ssm.data.batches.Samples`.
        entries: where each sample is.
    """

    name: str
    place: str
    about: Mapping[str, Any]
    fingerprint: str
    entries: tuple[_Entry, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """For messages: the tar file and the name that the image file had."""
        return tuple(f"{entry.tar}/{entry.name}" for entry in self.entries)

    @property
    def values(self) -> tuple[Any, ...]:
        """`Packed.value` of each sample."""
        return tuple(entry.value for entry in self.entries)

    @property
    def scenes(self) -> tuple[bool, ...]:
        """Which samples are scenes."""
        return tuple(entry.scene for entry in self.entries)

    def image(self, index: int, *, max_pixels: int = MAX_PIXELS) -> AnyImage:
        """Decode a picture as `vision_ssm.data.images.read_image`, or a scene. Raises DataError naming it."""
        entry = self.entries[index]
        encoded = Encoded(f"{entry.tar}/{entry.name}", partial(read_part, entry.tar, entry.offset, entry.size))
        return encoded.read_scene(max_pixels=max_pixels) if entry.scene else encoded.read(max_pixels=max_pixels)

    def target(self, index: int) -> bytes:
        """Read the content of a target's file. Raises DataError naming the tar file."""
        entry = self.entries[index]
        return read_part(entry.tar, entry.target_offset, entry.target_size)


def is_packed(place: str | Path) -> bool:
    """Tell whether a place is a folder of shards. Of an address that is supposed, and `open_shards` finds out."""
    if is_remote(place):
        return True
    try:
        return (Path(place).expanduser() / INDEX).is_file()
    except (OSError, RuntimeError):
        return False


def packed_for(place: str | Path) -> str | None:
    """Return the task that a folder of shards is for; None where it is none."""
    with suppress(DataError):
        return str(_index(_located(place))["task"]) if is_packed(place) else None
    return None


def open_shards(place: str | Path, split: str, suffix: str) -> ShardSplit:
    """Open a split of a folder of shards, or of an address of one.

    Args:
        place: the folder.
        split: ``train``, ``val``, ``test`` (the same as ``val`` where there is only one of them) or ``all``.
        suffix: of the files of targets that are wanted.

    Raises:
        DataError: no such folder or split, targets of another kind, or a tar file that is missing, truncated or longer
            than it was written; names it.
    """
    text = _located(place)
    index = _index(text)
    if index["suffix"] != suffix:
        raise DataError(
            f"the shards in {text!r} were packed for the task {index['task']}: their targets are {index['suffix']} "
            f"files, and {suffix} files are wanted."
        )
    known = index["splits"]
    other = {"val": "test", "test": "val"}.get(split, split)  # held-out parts stand for each other
    wanted = [*known] if split == "all" else [split if split in known else other]
    if wanted[0] not in known:
        raise DataError(f"the shards in {text!r} have no split {split!r}; they have {', '.join(known)}.")
    entries: list[_Entry] = []
    for part in wanted:
        for shard in known[part]["shards"]:
            tar = _join(text, shard["file"])
            size, _ = state_of(tar)
            if size != shard["bytes"]:
                what = "missing" if size < 0 else "truncated" if size < shard["bytes"] else "longer than it was"
                told = "" if size < 0 else f": it has {size:,} bytes and was written with {shard['bytes']:,}"
                raise DataError(f"the shard {tar!r} is {what}{told}; copy it again.")
            entries += [_Entry(tar, *row) for row in _read_json(f"{tar.removesuffix('.tar')}.json")]
    digests = [known[part]["fingerprint"] for part in wanted]
    joined = digests[0] if len(digests) == 1 else blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()
    return ShardSplit(index["name"], text, index["about"], joined, tuple(entries))


def splits_of_shards(place: str | Path) -> tuple[str, ...]:
    """Return the splits that a folder of shards has; held-out ones stand for each other. Raises DataError."""
    known = {*_index(_located(place))["splits"]}
    held = {"val", "test"} if known & {"val", "test"} else set()
    return tuple(split for split in ("train", "val", "test") if split in known | held)


def shard_files(place: str | Path) -> tuple[str, ...]:
    """Return the tar files that a folder of shards lists, split by split. Raises DataError."""
    text = _located(place)
    return tuple(_join(text, shard["file"]) for of in _index(text)["splits"].values() for shard in of["shards"])


def write_shards(
    folder: Path,
    splits: Mapping[str, tuple[str, Iterable[Packed]]],
    *,
    task: str,
    suffix: str,
    name: str,
    about: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, int]:
    """Write a data set; `INDEX` comes last, so a folder that has it is whole.

    Args:
        folder: new, or of an attempt that was ended, whose tar files and lists are removed first.
        splits: fingerprint and samples of each; they are taken one after the other.
        task: that they are for.
        suffix: of the files of targets.
        name: of the data.
        about: what all samples share, as plain JSON values.
        shard_bytes: a tar file ends with the sample that makes it so large.

    Returns:
        how many samples each split has.

    Raises:
        DataError: the folder holds shards, or files of their names that no such attempt left, or cannot be written.
            What the iterables raise.
    """
    require_unlisted(folder)
    _begin(folder, splits)
    written: dict[str, dict[str, Any]] = {}
    for split, (fingerprint, samples) in splits.items():
        shards: list[dict[str, Any]] = []
        remaining = iter(samples)
        while (first := next(remaining, None)) is not None:
            name_of, number = f"{split}-{len(shards):05d}", sum(shard["samples"] for shard in shards)
            shards.append(_write_shard(folder / name_of, suffix, number, first, remaining, shard_bytes))
        written[split] = {"fingerprint": fingerprint, "shards": shards}
    counts = write_index(folder, written, task=task, suffix=suffix, name=name, about=about)
    (folder / _BEGUN).unlink()
    return counts


def require_unlisted(folder: Path) -> None:
    """Raise DataError for a folder that is one of shards."""
    if (folder / INDEX).exists():
        raise DataError(f"{str(folder)!r} holds shards already; choose another folder, or remove this one.")


def write_list(tar: Path, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Write beside a tar file what is where in it; return how `INDEX` tells of it.

    Args:
        tar: the file, whole.
        rows: of each sample the name of its image, offset and size of this, those of its target, and `Packed.value`;
            for a scene ``True`` as well.
    """
    with whole_file(tar.with_suffix(".json")) as part:
        part.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    return {"file": tar.name, "bytes": tar.stat().st_size, "samples": len(rows)}


def write_index(
    folder: Path, splits: Mapping[str, Any], *, task: str, suffix: str, name: str, about: Mapping[str, Any]
) -> dict[str, int]:
    """Write `INDEX`, last of all.

    Args:
        folder: of the tar files.
        splits: of each its ``fingerprint``, and under ``shards`` what `write_list` returned.
        task: that they are for.
        suffix: of the files of targets.
        name: of the data.
        about: what all samples share, as plain JSON values.

    Returns:
        how many samples each split has.
    """
    index = {"version": _VERSION, "task": task, "suffix": suffix, "name": name, "about": about, "splits": splits}
    with whole_file(folder / INDEX) as part:
        part.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return {split: sum(shard["samples"] for shard in of["shards"]) for split, of in splits.items()}


def _begin(folder: Path, splits: Collection[str]) -> None:
    """Remove what an attempt that was ended has left: of other sizes or splits, it may be more than is written now."""
    names = "|".join(map(re.escape, {*splits, "train", "val", "test"}))
    ours = re.compile(rf"({names})-\d{{5,}}\.(tar|json)")
    left = sorted(path for path in folder.glob("*") if ours.fullmatch(path.name))
    if left and not (folder / _BEGUN).exists():
        raise DataError(f"{str(left[0])!r} is in the place of a shard that is to be written; choose another folder.")
    with whole_file(folder / _BEGUN) as part:
        part.touch()
    for path in left:
        path.unlink()


def _write_shard(
    stem: Path, suffix: str, number: int, first: Packed, remaining: Iterator[Packed], shard_bytes: int
) -> dict[str, Any]:
    path = stem.with_suffix(".tar")
    rows: list[list[Any]] = []
    with whole_file(path) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
        sample: Packed | None = first
        while sample is not None:
            key = f"{number + len(rows):08d}"
            image = _add(archive, key + Path(sample.name).suffix.lower(), sample.image)
            target = _add(archive, key + suffix, sample.target)
            rows.append([_text(sample.name), *image, *target, sample.value, *([True] if sample.scene else [])])
            sample = next(remaining, None) if archive.offset < shard_bytes else None
    return write_list(path, rows)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Append a file, the same whenever it is written; returns where its content begins, and its length."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    begin = archive.offset + tarfile.BLOCKSIZE
    archive.addfile(entry, io.BytesIO(content))
    return begin, len(content)


def _located(place: str | Path) -> str:
    return str(place) if is_remote(place) else str(Path(place).expanduser())


def _index(place: str) -> dict[str, Any]:
    if state_of(_join(place, INDEX))[0] < 0:
        raise DataError(f"{place!r} has no {INDEX}: it is no folder of shards, which `vision-ssm data pack` writes.")
    index = _read_json(_join(place, INDEX))
    if not isinstance(index, dict) or index.get("version") != _VERSION:
        raise DataError(f"{_join(place, INDEX)!r} is no list of shards that this version reads; pack the data again.")
    return index


def _read_json(place: str) -> Any:
    content = read_part(place)
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{place!r} is damaged: {error}; copy it again.") from error


def _join(place: str, name: str) -> str:
    return f"{place.rstrip('/')}/{name}" if is_remote(place) else os.path.join(place, name)


def _text(name: str) -> str:
    # File names need not be valid text.
    return os.fsencode(name).decode("utf-8", "backslashreplace")
