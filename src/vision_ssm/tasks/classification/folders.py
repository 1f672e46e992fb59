"""Folders of class folders, as torchvision's ImageFolder reads them, with the checks people need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vision_ssm.data.files import image_files, is_visible
from vision_ssm.data.images import MAX_PIXELS, check_image, read_image
from vision_ssm.data.splits import held_out
from vision_ssm.errors import DataError, suggestion
from vision_ssm.tasks.classification.fingerprints import fingerprint

__all__ = ["CACHE_BYTES", "ImageFolder", "open_folder"]

CACHE_BYTES = 512 * 2**20
"""Data sets that decode to less than this (CIFAR-10: 147 MB) are kept decoded in memory, in each loading process."""

_TRAIN = ("train",)
_VAL = ("val", "validation", "valid")
_TEST = ("test",)


class ImageFolder:
    """Images in class folders. See `vision_ssm.tasks.classification.sources.ClassSamples` for the attributes.

    Decoded images are kept in memory when all of them are expected to fit into `CACHE_BYTES`.
    """

    mirror_safe = True

    def __init__(
        self, name: str, class_names: Sequence[str], paths: Sequence[str], targets: Sequence[int], max_pixels: int
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.paths = tuple(paths)
        self.targets = tuple(targets)
        self._max_pixels = max_pixels
        self._cache: dict[int, tuple[tuple[int, int], bytes]] | None = {} if self._fits_in_memory() else None
        self._cached_bytes = 0

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names and classes."""
        return fingerprint(self)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if self._cache is not None and index in self._cache:
            size, pixels = self._cache[index]
            return Image.frombytes("RGB", size, pixels), self.targets[index]
        image = read_image(self.paths[index], max_pixels=self._max_pixels)
        if self._cache is not None:
            pixels = image.tobytes()
            if self._cached_bytes + len(pixels) <= CACHE_BYTES:
                self._cache[index] = (image.size, pixels)
                self._cached_bytes += len(pixels)
        return image, self.targets[index]

    def _fits_in_memory(self) -> bool:
        # Sixteen headers, evenly spread, tell the typical size; __getitem__ keeps the limit if they mislead.
        step = max(1, len(self.paths) // 16)
        sample = self.paths[::step]
        try:
            areas = [width * height for width, height in (check_image(path) for path in sample)]
        except DataError:
            return False  # reported, with the file's name, when its turn comes
        return 3 * sum(areas) / len(areas) * len(self.paths) < CACHE_BYTES


def open_folder(root: Path, split: str, *, val_fraction: float, max_pixels: int = MAX_PIXELS) -> ImageFolder:
    """Open one split of a folder; see `vision_ssm.tasks.classification.sources.open_dataset` for the rules.

    Raises:
        DataError: the layout is not one of the two, or a class folder has no readable image.
    """
    train = _child(root, _TRAIN)
    held = _child(root, _VAL), _child(root, _TEST)
    if train is None and any(held):
        raise DataError(
            f"{str(root)!r} has {_and(*held)} but no train/ folder; add one, or give a folder of class folders."
        )
    if train is None:
        whole = split == "all" or (split != "train" and root.resolve().name.lower() in (*_VAL, *_TEST))
        return _load(root, root, split, None if whole else val_fraction, max_pixels)
    order = held[::-1] if split == "test" else held
    val = next((folder for folder in order if folder is not None), None)
    if val is None:
        return _load(root, train, split, None if split == "all" else val_fraction, max_pixels)
    _require_equal_classes(train, val)
    if split == "all":
        return _joined(root, [_load(root, folder, split, None, max_pixels) for folder in (train, *held) if folder])
    return _load(root, train if split == "train" else val, split, None, max_pixels)


def _load(root: Path, tree: Path, split: str, val_fraction: float | None, max_pixels: int) -> ImageFolder:
    class_folders = _class_folders(tree)
    names: list[str] = []
    paths: list[str] = []
    targets: list[int] = []
    for target, folder in enumerate(class_folders):
        files = image_files(folder)
        _require_readable(folder, files, max_pixels)
        paths += [str(file) for file in files]
        names += [file.relative_to(tree).as_posix() for file in files]
        targets += [target] * len(files)
    if val_fraction is not None:
        chosen = held_out(names, targets, val_fraction)
        keep = [position for position in range(len(paths)) if (position in chosen) == (split != "train")]
        paths, targets = [paths[position] for position in keep], [targets[position] for position in keep]
        if not paths:
            raise DataError(f"{str(tree)!r} has one image per class, so nothing can be held out for {split!r}.")
    return ImageFolder(root.resolve().name, [folder.name for folder in class_folders], paths, targets, max_pixels)


def _joined(root: Path, parts: Sequence[ImageFolder]) -> ImageFolder:
    paths = [path for part in parts for path in part.paths]
    targets = [target for part in parts for target in part.targets]
    return ImageFolder(root.resolve().name, parts[0].class_names, paths, targets, parts[0]._max_pixels)


def _class_folders(tree: Path) -> list[Path]:
    folders = sorted((entry for entry in tree.iterdir() if entry.is_dir() and is_visible(entry.name)), key=_name)
    if folders:
        return folders
    here = image_files(tree)
    if here:
        raise DataError(
            f"{str(tree)!r} holds {len(here)} images but no class folders; put the images of each class into a "
            "folder named after the class."
        )
    raise DataError(f"data folder {str(tree)!r} is empty; expected one folder of images per class.")


def _require_readable(folder: Path, files: Sequence[Path], max_pixels: int) -> None:
    """Check one header per class: enough to notice the wrong folder, without reading a large data set twice."""
    if not files:
        raise DataError(f"class folder {str(folder)!r} has no image; remove the folder or add images to it.")
    reason = None
    for file in files:
        try:
            check_image(file, max_pixels=max_pixels)
        except DataError as error:
            reason = reason or error
        else:
            return
    raise DataError(f"class folder {str(folder)!r} has no readable image among {len(files)} files; the first: {reason}")


def _require_equal_classes(train: Path, val: Path) -> None:
    known, seen = ({folder.name for folder in _class_folders(tree)} for tree in (train, val))
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


def _child(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _and(*folders: Path | None) -> str:
    return " and ".join(f"{folder.name}/" for folder in folders if folder is not None)


def _listing(names: set[str]) -> str:
    shown = sorted(names)[:5]
    more = len(names) - len(shown)
    return ", ".join(repr(name) for name in shown) + (f" and {more} more" if more else "")


def _name(path: Path) -> str:
    return path.name
