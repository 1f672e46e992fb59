"""Images with masks in shards: ``key.jpg`` beside ``key.mask.png``, the class indices."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from vision_ssm.data.bands import AnyImage, valid_pixels
from vision_ssm.data.images import MAX_PIXELS, reading
from vision_ssm.data.shards import MASK_SUFFIX, ShardSplit, open_shards
from vision_ssm.tasks.legend import Colour
from vision_ssm.tasks.segmentation.masks import IGNORE, paletted

if TYPE_CHECKING:
    from vision_ssm.tasks.segmentation.sources import MaskSamples

__all__ = ["MaskPacking", "PackedMasks", "open_packed", "with_mask"]


class PackedMasks:
    """Images with masks in shards; attributes as in `vision_ssm.tasks.segmentation.sources.MaskSamples`."""

    def __init__(self, shards: ShardSplit, max_pixels: int) -> None:
        self.name, self.paths = shards.name, shards.paths
        self.class_names: tuple[str, ...] = tuple(shards.about["class_names"])
        self.palette: tuple[Colour, ...] = tuple((red, green, blue) for red, green, blue in shards.about["palette"])
        self.mask_paths = tuple(entry.tar for entry in shards.entries)
        self.scenes = shards.scenes
        self.fingerprint = shards.fingerprint
        self.found = f"{len(self.paths):,} images of {len(self.class_names)} classes in the shards {shards.place}"
        self._shards, self._max_pixels = shards, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[AnyImage, tv_tensors.Mask]:
        return with_mask(self._shards.image(index, max_pixels=self._max_pixels), self.mask(index))

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Decode the class indices [H, W] alone."""
        content = self._shards.target(index)
        with reading(f"the mask of {self.paths[index]!r}", self._max_pixels):
            return np.array(Image.open(io.BytesIO(content), formats=["PNG"]), np.uint8)


class MaskPacking:
    """How they get there, see `vision_ssm.tasks.packing.Packing`."""

    suffix = MASK_SUFFIX

    def about(self, samples: MaskSamples) -> dict[str, Any]:
        """Names and colours of the classes."""
        return {"class_names": list(samples.class_names), "palette": [list(colour) for colour in samples.palette]}

    def target(self, samples: MaskSamples, index: int) -> tuple[bytes, None]:
        """The mask, its classes numbered from 0."""
        content = io.BytesIO()
        paletted(samples.mask(index), samples.palette).save(content, "PNG")
        return content.getvalue(), None


def open_packed(place: str | Path, split: str, max_pixels: int = MAX_PIXELS) -> PackedMasks:
    """Open a split of a folder of shards. Raises DataError as `vision_ssm.data.shards.open_shards`."""
    return PackedMasks(open_shards(place, split, MASK_SUFFIX), max_pixels)


def with_mask(image: AnyImage, mask: NDArray[np.uint8]) -> tuple[AnyImage, tv_tensors.Mask]:
    """Return an image with its mask [H, W], in which no class counts where the image holds no data."""
    valid = valid_pixels(image)
    if valid is not None:
        mask = np.where(valid, mask, np.uint8(IGNORE))
    return image, tv_tensors.Mask(torch.from_numpy(mask))
