"""Random trees as data folders: a split of images that can be loaded, or an error that says what is expected."""

from __future__ import annotations

import os
import random
from pathlib import Path

from PIL import Image

from fuzz.faults import Fault, outcome_of
from vision_ssm.data.labelled.sources import open_dataset
from vision_ssm.errors import DataError

__all__ = ["case"]

FOLDERS = ("train", "Train", "training_images", "val", "valid", "test", "Testing", "cat", "dog", "a b", "données")
FOLDERS += (".hidden", "__MACOSX", "images", "data", "\u202eodd", "line\nbreak", "x" * 200, "0", "-1")
FILES = ("a.png", "b.png", "c.jpg", "d.heic", "e.txt", ".DS_Store", "Thumbs.db", "config.yaml", "log.jsonl", "noext")
FILES += ("f.npy", "g.tif", "UPPER.PNG")


def case(rng: random.Random, folder: Path) -> None:
    """Make a tree, and open each split of it."""
    root = folder / rng.choice(("data", "train", "val", "daten ü"))
    root.mkdir()
    made: list[str] = []
    _fill(rng, root, 0, made)
    for split in ("train", "val", "test", "all"):
        found = outcome_of(lambda split=split: _loaded(root, split))  # type: ignore[misc]
        if found.error is not None and not isinstance(found.error, DataError):
            raise Fault(f"{split} ends in {found}\n  the tree: {made}")
    for path in root.rglob("*"):  # so that the tree can be removed
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)


def _loaded(root: Path, split: str) -> int:
    samples = open_dataset(root, split, val_fraction=0.5)
    if len(samples.class_names) < 1 or len(set(samples.class_names)) != len(samples.class_names):
        raise Fault(f"classes {samples.class_names}")
    if not all(0 <= target < len(samples.class_names) for target in samples.targets):
        raise Fault(f"targets beyond the {len(samples.class_names)} classes")
    samples[0]
    return len(samples)


def _fill(rng: random.Random, folder: Path, depth: int, made: list[str]) -> None:
    for name in rng.sample(FILES, rng.choice((0, 0, 1, 2, 4))):
        _file(rng, folder / name)
        made.append(str((folder / name).name))
    if depth == 3:
        return
    for name in rng.sample(FOLDERS, rng.choice((0, 1, 2, 2, 3))):
        inner = folder / name
        made.append(f"{'  ' * depth}{name!r}/")
        if rng.random() < 0.05:
            inner.symlink_to(rng.choice((folder, folder.parent, Path("/nonexistent"))))
            continue
        inner.mkdir()
        _fill(rng, inner, depth + 1, made)
        if rng.random() < 0.02:
            inner.chmod(0)


def _file(rng: random.Random, path: Path) -> None:
    kind = rng.random()
    if kind < 0.03 and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif kind < 0.06:
        path.mkdir()
    elif kind < 0.09:
        path.symlink_to("nowhere")
    elif kind < 0.2:
        path.write_bytes(rng.randbytes(rng.choice((0, 5, 50))))
    else:
        Image.new("RGB", (2, 3), "red").save(path, "PNG")
