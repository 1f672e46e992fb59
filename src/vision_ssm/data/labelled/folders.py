"""Folders of class folders, as torchvision's ImageFolder reads them, with the checks people need."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.files import image_files, search, skipped_files
from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.data.kept import KeptImages
from vision_ssm.data.labelled.fingerprints import fingerprint
from vision_ssm.data.labelled.layout import Layout, find_layout
from vision_ssm.data.parts import is_held_out, visible_folders
from vision_ssm.data.scenes import check_any, read_any
from vision_ssm.data.splits import held_out
from vision_ssm.errors import DataError, notify, suggestion

__all__ = ["CACHE_BYTES", "ImageFolder", "open_folder", "splits_of_folder"]

CACHE_BYTES = 512 * 2**20
"""Data sets that decode to less than this (CIFAR-10: 147 MB) are kept decoded in memory, once for all processes."""


class ImageFolder:
    """Images in class folders. See `vision_ssm.data.labelled.sources.ClassSamples` for the attributes.

    Decoded images are kept in memory, for all loading processes together, when they are expected to fit into
    `CACHE_BYTES`.

    Attributes:
        found: what these images are, in a line for people.
    """

    mirror_safe = True

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        paths: Sequence[str],
        targets: Sequence[int],
        max_pixels: int,
        place: str = "",
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.paths = tuple(paths)
        self.targets = tuple(targets)
        self.found = _described(place or name, self.class_names, self.targets)
        self._max_pixels = max_pixels
        self._kept = KeptImages(len(self.paths), CACHE_BYTES) if self._fits_in_memory() else None

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names and classes."""
        return fingerprint(self)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[AnyImage, int]:
        kept = None if self._kept is None else self._kept.get(index)
        if kept is not None:
            return kept, self.targets[index]
        image = read_any(self.paths[index], max_pixels=self._max_pixels)
        if self._kept is not None and isinstance(image, Image.Image):
            self._kept.put(index, image)
        return image, self.targets[index]

    def _fits_in_memory(self) -> bool:
        # Sixteen headers, evenly spread, tell the typical size; __getitem__ keeps the limit if they mislead.
        step = max(1, len(self.paths) // 16)
        sample = self.paths[::step]
        try:
            areas = [width * height for width, height in (check_any(path) for path in sample)]
        except DataError:
            return False  # reported, with the file's name, when its turn comes
        return 3 * sum(areas) / len(areas) * len(self.paths) < CACHE_BYTES


def open_folder(root: Path, split: str, *, val_fraction: float, max_pixels: int = MAX_PIXELS) -> ImageFolder:
    """Open one split of a folder; see `vision_ssm.data.labelled.sources.open_dataset` for the rules.

    What is left out of it is told by a `VisionSSMNotice`.

    Raises:
        DataError: the layout is none of those, a class folder has no readable image, or a folder cannot be read.
    """
    try:
        layout = find_layout(root)
        _tell_left_out(root, [("folders beside those of images", layout.left_out)])
        return _open(root, layout, split, val_fraction, max_pixels)
    except OSError as error:
        raise DataError(f"cannot read the data folder {str(error.filename or root)!r}: {error.strerror}.") from error


def splits_of_folder(root: Path) -> tuple[str, ...]:
    """Return the splits that have a folder of their own in ``root``, or are it; held-out ones stand for each other.

    Raises:
        DataError: as `open_folder`.
    """
    try:
        layout = find_layout(root)
    except OSError as error:
        raise DataError(f"cannot read the data folder {str(error.filename or root)!r}: {error.strerror}.") from error
    if layout.whole is not None:
        return ("val", "test") if is_held_out(root.resolve().name) else ()
    return ("train", "val", "test") if layout.val or layout.test else ()


def _open(root: Path, layout: Layout, split: str, val_fraction: float, max_pixels: int) -> ImageFolder:
    if layout.whole is not None:
        whole = split == "all" or (split != "train" and is_held_out(root.resolve().name))
        return _load(root, layout.whole, split, None if whole else val_fraction, max_pixels)
    train = layout.train
    held = [folder for folder in (layout.val, layout.test) if folder is not None]
    if train is None:
        raise TypeError("a layout of parts has images to train on")
    if not held:
        return _load(root, train, split, None if split == "all" else val_fraction, max_pixels)
    val = held[-1] if split == "test" else held[0]
    _require_equal_classes(train, val)
    if split == "all":
        return _joined(root, [_load(root, folder, split, None, max_pixels) for folder in (train, *held)])
    return _load(root, train if split == "train" else val, split, None, max_pixels)


def _load(root: Path, tree: Path, split: str, val_fraction: float | None, max_pixels: int) -> ImageFolder:
    class_names: list[str] = []
    names: list[str] = []
    paths: list[str] = []
    targets: list[int] = []
    skipped: Counter[str] = Counter()
    runs: list[str] = []
    for folder in _class_folders(tree):
        content = search(folder)
        runs += [f"{run.relative_to(tree)}/" for run in content.runs]
        if content.runs and not content.images:
            continue
        skipped += content.skipped
        _require_readable(folder, content.images, max_pixels, content.skipped)
        paths += [str(file) for file in content.images]
        names += [file.relative_to(tree).as_posix() for file in content.images]
        targets += [len(class_names)] * len(content.images)
        class_names.append(_class_name(folder))
    formats = [skipped_files(skipped)] if skipped else []
    _tell_left_out(tree, [("training runs", runs), ("files of other formats", formats)])
    if not class_names:
        raise DataError(f"{str(tree)!r} holds folders of training runs and no images.")
    place = str(tree)
    if val_fraction is not None:
        chosen = held_out(names, targets, val_fraction)
        keep = [position for position in range(len(paths)) if (position in chosen) == (split != "train")]
        paths, targets = [paths[position] for position in keep], [targets[position] for position in keep]
        place = f"{place}, {1 - val_fraction if split == 'train' else val_fraction:.0%} of each class"
        if not paths:
            raise DataError(f"{str(tree)!r} has one image per class, so nothing can be held out for {split!r}.")
    return ImageFolder(root.resolve().name, class_names, paths, targets, max_pixels, place)


def _joined(root: Path, parts: Sequence[ImageFolder]) -> ImageFolder:
    paths = [path for part in parts for path in part.paths]
    targets = [target for part in parts for target in part.targets]
    names = parts[0].class_names
    return ImageFolder(root.resolve().name, names, paths, targets, parts[0]._max_pixels, str(root))


def _class_folders(tree: Path) -> list[Path]:
    folders = visible_folders(tree)
    if folders:
        return folders
    here = image_files(tree)
    if here:
        raise DataError(
            f"{str(tree)!r} holds {len(here)} images but no class folders; put the images of each class into a "
            "folder named after the class."
        )
    raise DataError(f"data folder {str(tree)!r} is empty; expected one folder of images per class.")


def _only_runs(folder: Path) -> bool:
    content = search(folder)
    return bool(content.runs) and not content.images


def _class_name(folder: Path) -> str:
    try:
        return os.fsencode(folder.name).decode("utf-8")  # the same under every locale
    except UnicodeDecodeError:
        raise DataError(f"the name of class folder {str(folder)!r} is no valid text (UTF-8); rename it.") from None


def _tell_left_out(place: Path, kinds: Sequence[tuple[str, Sequence[str]]]) -> None:
    told = [f"{kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" for kind, names in kinds if names]
    if told:
        notify(f"left out of {str(place)!r}: {', '.join(told)}.")


def _described(place: str, class_names: Sequence[str], targets: Sequence[int]) -> str:
    counts = Counter(targets)
    each = [counts[target] for target in range(len(class_names))]
    if len(each) <= 10:
        shown = ", ".join(f"{name} {count:,}" for name, count in zip(class_names, each, strict=True))
    else:
        shown = f"{min(each):,} to {max(each):,} each"
    return f"{len(targets):,} images of {len(each):,} class{'es' if len(each) != 1 else ''} ({shown}) in {place}"


def _require_readable(folder: Path, files: Sequence[Path], max_pixels: int, skipped: Counter[str]) -> None:
    """Check one header per class: enough to notice the wrong folder, without reading a large data set twice."""
    if not files:
        others = f" of a format that is read, only {skipped_files(skipped)}; convert them" if skipped else ""
        raise DataError(
            f"class folder {str(folder)!r} has no image{others or '; add images to it'}, or remove the folder."
        )
    reason = None
    for file in files:
        try:
            check_any(file, max_pixels=max_pixels)
        except DataError as error:
            reason = reason or error
        else:
            return
    raise DataError(f"class folder {str(folder)!r} has no readable image among {len(files)} files; the first: {reason}")


def _require_equal_classes(train: Path, val: Path) -> None:
    known, seen = ({_class_name(folder) for folder in _class_folders(tree)} for tree in (train, val))
    if known != seen:  # the exact look, at every file, is for those that seem to differ
        known, seen = ({_class_name(f) for f in _class_folders(tree) if not _only_runs(f)} for tree in (train, val))
    if known == seen:
        return
    differences = []
    if known - seen:
        differences.append(f"{_listing(known - seen)} only in {train.name}/")
    if seen - known:
        differences.append(f"{_listing(seen - known)} only in {val.name}/")
    odd = next(iter(sorted(seen - known)), "")
    raise DataError(
        f"the class folders of {str(train)!r} and {str(val)!r} differ: {'; '.join(differences)}."
        f"{suggestion(odd, known - seen)}"
    )


def _listing(names: set[str]) -> str:
    shown = sorted(names)[:5]
    more = len(names) - len(shown)
    return ", ".join(repr(name) for name in shown) + (f" and {more} more" if more else "")
