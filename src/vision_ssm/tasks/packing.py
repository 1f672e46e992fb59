"""Data sets of any task into shards."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vision_ssm.data.batches import Samples
from vision_ssm.data.encoded import Encoded
from vision_ssm.data.geo.raster import read_raster
from vision_ssm.data.images import IMAGE_SUFFIXES
from vision_ssm.data.scenes import is_scene
from vision_ssm.data.shards import SHARD_BYTES, Packed, write_shards
from vision_ssm.errors import ConfigError, DataError
from vision_ssm.settings import from_mapping
from vision_ssm.storage import require_writable
from vision_ssm.tasks.registry import find_task

__all__ = ["Packing", "pack"]

BESIDE = (".aux.xml", ".msk")
"""What GDAL reads with a file, beside where it lies: of that only coordinates are dispensable."""


class Packing(Protocol):
    """How a task's samples go into shards; how they come out is the business of what opens its data.

    Attributes:
        suffix: of the file of a target.
    """

    suffix: str

    def about(self, samples: Any) -> dict[str, Any]:
        """Return what all samples of a split share, such as names of classes, as plain JSON values."""

    def target(self, samples: Any, index: int) -> tuple[bytes, Any]:
        """Return the content of the file of a target, and what of it is wanted before anything is read."""


def pack(
    data: str | Path,
    folder: str | Path,
    task: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write a data set as shards: the parts that it has, or else those that training would cut.

    Image files are taken as they are, scenes too, without their coordinates where those are in a file beside them. The
    order is that of the data set.

    Args:
        data: a folder, or a name that the task knows.
        folder: for the shards.
        task: that the data are for.
        shard_bytes: a tar file ends with the sample that makes it so large.
        on_progress: called with (images done, images in all).

    Returns:
        how many samples each split has.

    Raises:
        DataError: the data cannot be opened or read, or the folder written; ConfigError: unknown task, or one whose
        data cannot be packed.
    """
    info = find_task(task)
    packing = info.load_packing()
    if packing is None:
        raise ConfigError(f"data of the task {task} cannot be packed.")
    if shard_bytes < 1:
        raise ConfigError(f"a shard has at least one byte, got {shard_bytes}.")
    folder = Path(folder)
    require_writable(folder)
    opened = info.load()(from_mapping(info.load_settings(), {"data": {"path": str(data)}}))
    splits: dict[str, Samples] = {}
    for split in opened.own_splits() or ("train", "val"):
        samples = opened.open(split)
        if all(samples.paths != other.paths for other in splits.values()):  # some stand for others
            splits[split] = samples
    about = packing.about(next(iter(splits.values())))
    total, done = sum(map(len, splits.values())), 0

    def packed(samples: Samples) -> Iterator[Packed]:
        nonlocal done
        for index in range(len(samples)):
            name, content, scene = _image_file(samples, index)
            target, value = packing.target(samples, index)
            yield Packed(name, content, target, value, scene)
            done += 1
            if on_progress is not None:
                on_progress(done, total)

    return write_shards(
        folder,
        {split: (samples.fingerprint, packed(samples)) for split, samples in splits.items()},
        task=task,
        suffix=packing.suffix,
        name=next(iter(splits.values())).name,
        about=about,
        shard_bytes=shard_bytes,
    )


def _image_file(samples: Samples, index: int) -> tuple[str, bytes, bool]:
    """Name and content of the file of an image, and whether it is a scene; images that have none become PNG."""
    path = Path(samples.paths[index])
    if path.suffix.lower() in IMAGE_SUFFIXES:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read image {str(path)!r}: {error.strerror}.") from error
        scene = is_scene(path)
        if scene:
            _require_alone(path, content)
        return path.name, content, scene
    image, _ = samples[index]
    if not isinstance(image, Image.Image):
        raise DataError(f"image {str(path)!r} is neither a file nor a picture, so it cannot be packed.")
    png = io.BytesIO()
    image.save(png, "PNG")
    return path.name + ".png", png.getvalue(), False


def _require_alone(path: Path, content: bytes) -> None:
    """Raise DataError for a scene of which files beside it say which pixels hold data, or what samples mean."""
    beside = [other.name for ending in BESIDE if (other := path.with_name(path.name + ending)).exists()]
    if not beside:
        return
    whole, alone = read_raster(path), Encoded(str(path), lambda: content).read_scene()
    masks = [np.True_ if each.valid is None else each.valid for each in (whole, alone)]
    same = whole.samples == alone.samples and np.array_equal(whole.values, alone.values, equal_nan=True)
    if not (same and np.array_equal(masks[0], masks[1])):
        raise DataError(
            f"{str(path)!r} is read otherwise without {' and '.join(beside)} beside it, which shards do not keep; "
            "write all of it into one file."
        )
