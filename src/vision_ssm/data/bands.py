"""From an image of any kind to the numbers that a model was trained on, or the reason why it is none for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.geo.raster import Raster
from vision_ssm.data.pixels import eight_bits
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import DataError

__all__ = ["AnyImage", "as_picture", "described_bands", "samples_of", "valid_pixels"]

AnyImage = Image.Image | Raster
"""An RGB picture, or a scene."""

_KINDS = {
    "uint8": "whole numbers of 8 bits",
    "int8": "whole numbers of 8 bits with sign",
    "uint16": "whole numbers of 16 bits",
    "int16": "whole numbers of 16 bits with sign",
    "uint32": "whole numbers of 32 bits",
    "int32": "whole numbers of 32 bits with sign",
    "float32": "real numbers",
}


def as_picture(image: AnyImage) -> Image.Image:
    """Return an image as RGB, to be looked at."""
    return image.picture() if isinstance(image, Raster) else image


def valid_pixels(image: AnyImage) -> NDArray[np.bool_] | None:
    """Which pixels of an image hold data, [H, W]; None for all."""
    return image.valid if isinstance(image, Raster) else None


def described_bands(count: int, samples: str) -> str:
    """Say what images are made of: ``4 bands of whole numbers of 8 bits``."""
    return f"{count} band{'s' if count != 1 else ''} of {_KINDS[samples]}"


def samples_of(image: AnyImage, wanted: Preprocessing) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return the samples [H, W, C] of an image as a model takes them, uint8 or float32.

    - A picture has its three colours, or their luminance for a model of one channel.
    - A scene of one band fills all three channels of a model of pictures, as grey pictures do.
    - Samples without sign are scaled to 8 bits, from the full range of their depth, for a model of 8 bits. Nothing else
      is converted: the numbers of any other type mean what they mean.
    - Pixels without data are the mean of the training images, which is 0 after normalisation.

    Raises:
        DataError: the image has other bands or samples than the model was trained on.
    """
    channels = wanted.input_size[0]
    if isinstance(image, Image.Image):
        if channels not in (1, 3) or wanted.samples != "uint8":
            expected = described_bands(channels, wanted.samples)
            raise DataError(f"it is a picture of 3 colours of 8 bits, and this model takes {expected}")
        return np.array(image) if channels == 3 else np.array(image.convert("L"))[..., None]
    values: NDArray[Any] = image.values
    found = values.shape[2]
    is_grey = found == 1 and channels == 3 and wanted.samples == "uint8"
    if found != channels and not is_grey:
        raise DataError(
            f"it has {found} band{'s' if found != 1 else ''} ({', '.join(image.bands)}), and this model takes "
            f"{channels} channel{'s' if channels != 1 else ''}; write a file of those that it was trained on"
        )
    if image.samples != wanted.samples:
        if wanted.samples != "uint8" or image.samples not in ("uint16", "uint32") or image.bits > 16:
            raise DataError(
                f"it holds {_KINDS[image.samples]}, and this model was trained on {_KINDS[wanted.samples]}, which mean "
                "something else; convert it as the images of training"
            )
        values = eight_bits(values.astype(np.int64), 2**image.bits - 1)
    if is_grey:
        values = np.broadcast_to(values, (*values.shape[:2], 3))
    if image.valid is None:
        return np.array(values)  # torch shares no memory that is only to be read
    mean = wanted.unit * np.array(wanted.mean)
    fill = mean.round().clip(0, 255).astype(np.uint8) if values.dtype == np.uint8 else mean.astype(np.float32)
    return np.where(image.valid[..., None], values, fill)
