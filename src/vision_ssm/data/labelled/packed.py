"""Images with one class each in shards: ``key.jpg`` beside ``key.cls``, the number of its class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.data.shards import ShardSplit, open_shards

if TYPE_CHECKING:
    from vision_ssm.data.labelled.sources import ClassSamples

__all__ = ["ClassPacking", "PackedClasses", "open_packed"]

SUFFIX = ".cls"


class PackedClasses:
    """Images in shards; attributes as in `vision_ssm.data.labelled.sources.ClassSamples`."""

    def __init__(self, shards: ShardSplit, max_pixels: int) -> None:
        self.name, self.paths = shards.name, shards.paths
        self.class_names: tuple[str, ...] = tuple(shards.about["class_names"])
        self.mirror_safe = bool(shards.about["mirror_safe"])
        self.targets: tuple[int, ...] = shards.values
        self.scenes = shards.scenes
        self.fingerprint = shards.fingerprint
        self.found = f"{len(self.paths):,} images of {len(self.class_names):,} classes in the shards {shards.place}"
        self._shards, self._max_pixels = shards, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[AnyImage, int]:
        return self._shards.image(index, max_pixels=self._max_pixels), self.targets[index]


class ClassPacking:
    """How they get there, see `vision_ssm.tasks.packing.Packing`."""

    suffix = SUFFIX

    def about(self, samples: ClassSamples) -> dict[str, Any]:
        """The names of the classes, and whether mirrored images keep theirs."""
        return {"class_names": list(samples.class_names), "mirror_safe": samples.mirror_safe}

    def target(self, samples: ClassSamples, index: int) -> tuple[bytes, int]:
        """The number of the class."""
        return str(samples.targets[index]).encode(), samples.targets[index]


def open_packed(place: str | Path, split: str, max_pixels: int = MAX_PIXELS) -> PackedClasses:
    """Open a split of a folder of shards. Raises DataError as `vision_ssm.data.shards.open_shards`."""
    return PackedClasses(open_shards(place, split, SUFFIX), max_pixels)
