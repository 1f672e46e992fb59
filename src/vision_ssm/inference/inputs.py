"""From the images a user names to what a model takes: found, read, prepared; in batches, or in strips at own size."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vision_ssm.data.bands import AnyImage, samples_of, valid_pixels
from vision_ssm.data.batches import Batch, Sample, Transform
from vision_ssm.data.budget import check_pixels
from vision_ssm.data.encoded import Encoded
from vision_ssm.data.files import search, skipped_files
from vision_ssm.data.geo.raster import open_raster
from vision_ssm.data.images import decoding, picture_in_memory, read_image
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.scenes import is_scene, read_any
from vision_ssm.data.strips import open_strips
from vision_ssm.device import autocast
from vision_ssm.errors import ConfigError, DataError, ShapeError, notify
from vision_ssm.layers.strips import Patches
from vision_ssm.tasks.task import Task
from vision_ssm.weights.files import Loaded

__all__ = [
    "NATIVE",
    "EmbedsStrips",
    "Failure",
    "ImageLike",
    "ImageSize",
    "ModelInput",
    "Named",
    "find_images",
    "is_native",
    "of_one_image",
    "prepare_images",
    "read_picture",
]

ImageLike = str | Path | Image.Image | np.ndarray[Any, Any] | Encoded
"""A file, a folder (searched with its subfolders), a pattern such as ``photos/**/*.jpg``, a PIL image, a uint8 array
[H, W] or [H, W, 3], or an image in another file (`vision_ssm.data.encoded.Encoded`)."""

Result = TypeVar("Result")

NATIVE = "native"
ImageSize = int | tuple[int, int] | Literal["native"] | None
"""A side or (height, width) to resize to, 'native' for every image at its own size, None for the size of training."""

_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "bad_alloc")

_Prepared = tuple[Sample, Tensor | None]  # an image, and where it holds data

ModelInput = Tensor | Patches
"""Images [B, 3, H, W], or patches that were embedded in strips; `Batch.images` is one of them."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be used, and why."""

    path: str
    reason: str


class Named(NamedTuple):
    """An image, or the file that holds it, and how it is called in results."""

    name: str
    image: ImageLike


@runtime_checkable
class EmbedsStrips(Protocol):
    """A model that embeds images as they are read, and takes the result in the place of the images."""

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips [B, 3, r, W], top to bottom; ``size`` is the whole (H, W)."""


def find_images(images: ImageLike | Iterable[ImageLike | Named], failures: list[Failure]) -> list[Named]:
    """List images with their names, folders replaced by the image files in them; empty folders join ``failures``.

    What else is in the folders is told by a `VisionSSMNotice`.

    Raises:
        DataError: no image at all.
    """
    alone = isinstance(images, (str, Path, Image.Image, np.ndarray, Encoded, Named))
    listed: list[Any] = [images] if alone else list(images)  # type: ignore[arg-type]
    found: list[Named] = []
    for number, image in enumerate(listed):
        if isinstance(image, Named):  # found before
            found.append(image)
        elif isinstance(image, Encoded):
            found.append(Named(image.name, image))
        elif isinstance(image, (Image.Image, np.ndarray)):
            found.append(Named(f"image {number}", image))
        elif os.path.isdir(image):
            found += _in_folder(Path(image), failures)
        elif glob.has_magic(str(image)) and not os.path.lexists(image):
            found += _matching(str(image), failures)
        else:
            found.append(Named(str(image), image))
    if not found and not failures:
        raise DataError("no images; give image files or folders: after the weights, or as images=...")
    return found


def _matching(pattern: str, failures: list[Failure]) -> list[Named]:
    files = [file for file in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(file)]
    if not files:
        failures.append(Failure(pattern, "no file matches this pattern"))
    return [Named(file, file) for file in files]


def _in_folder(folder: Path, failures: list[Failure]) -> list[Named]:
    try:
        content = search(folder)
    except DataError as error:
        failures.append(Failure(str(folder), str(error)))
        return []
    skipped = f"files of other formats are left out: {skipped_files(content.skipped)}" if content.skipped else ""
    runs = f"training runs are left out: {', '.join(map(str, content.runs[:3]))}" if content.runs else ""
    told = "; ".join(filter(None, (skipped, runs)))
    if not content.images:
        failures.append(Failure(str(folder), f"no image files in this folder{f'; {told}' if told else ''}"))
    elif told:
        notify(f"{len(content.images):,} images in {str(folder)!r}; {told}.")
    return [Named(str(file), file) for file in content.images]


def prepare_images(
    found: Sequence[Named],
    loaded: Loaded,
    task: Task,
    failures: list[Failure],
    *,
    batch_size: int,
    img_size: ImageSize,
    amp: str,
    max_pixels: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[list[Named], Batch]]:
    """Yield (images, what the model takes, on its device) for one batch after the other.

    Images that cannot be used join ``failures``. With ``img_size="native"`` each image makes a batch of its own.
    ``Batch.indices`` count within the batch; targets are None.

    Args:
        found: what `find_images` returned.
        loaded: the model and its preprocessing.
        task: that the model was trained for.
        failures: extended.
        batch_size: images per batch, at least 1.
        img_size: see `ImageSize`.
        amp: precision in which strips are embedded.
        max_pixels: see `vision_ssm.data.images.read_image`.
        on_progress: called with (images done, images in all) when the next batch is asked for.

    Raises:
        ConfigError: an option is out of range.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    prepare: Callable[[ImageLike], _Prepared]
    native = is_native(img_size) or (img_size is None and task.native)
    size = 1 if native else batch_size
    own = loaded.info.preprocessing
    prepared = own if native or img_size is None else task.sized(own, img_size)  # type: ignore[arg-type]
    backbone = task.backbone(loaded.model)
    prepare_rows = task.transform_rows(own) if native and isinstance(backbone, EmbedsStrips) else None
    if prepare_rows is not None:
        rows = _Rows(prepare_rows, own, task.scenes)
        prepare = partial(_embedded, backbone=backbone, rows=rows, amp=amp, max_pixels=max_pixels)
        collate = _alone
    else:
        transform = task.transform(prepared, train=False, native=native)
        prepare = partial(_transformed, transform=transform, scenes=task.scenes, max_pixels=max_pixels)
        collate = task.collate
    device = next(loaded.model.parameters()).device
    for start in range(0, len(found), size):
        used: list[Named] = []
        samples: list[Sample] = []
        valid: list[Tensor | None] = []
        for named in found[start : start + size]:
            try:
                sample, known = prepare(named.image)
                samples.append(sample._replace(position=len(used)))
                valid.append(known)
                used.append(named)
            except (DataError, ShapeError) as error:  # ShapeError: smaller than a patch, or not the one size allowed
                failures.append(Failure(named.name, str(error)))
            except (MemoryError, RuntimeError) as error:
                failures.append(_without_memory(named, error))
        if samples:
            yield used, collate(samples)._replace(valid=valid).to(device)
        if on_progress is not None:
            on_progress(min(start + size, len(found)), len(found))


def of_one_image(compute: Callable[[], Result], used: Sequence[Named], failures: list[Failure]) -> Result | None:
    """Return what ``compute`` finds in a batch; None if memory ends, which is a failure of the image if it is alone.

    Raises:
        Exception: what ``compute`` raises otherwise.
    """
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if len(used) > 1:
            raise
        failures.append(_without_memory(used[0], error))
        return None


def _without_memory(named: Named, error: MemoryError | RuntimeError) -> Failure:
    """Return the failure of an image that memory does not suffice for; raise any other error."""
    # torch has a type of its own for GPUs only.
    told = str(error)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(sign in told for sign in _NO_MEMORY):
        raise error
    return Failure(named.name, "not enough memory for it at this size; give a smaller img_size")


def is_native(img_size: ImageSize) -> bool:
    """Tell whether every image keeps its own size. Raises ConfigError for any other word."""
    if isinstance(img_size, str) and img_size != NATIVE:
        raise ConfigError(f"img_size must be a side, a (height, width) pair or {NATIVE!r}, got {img_size!r}.")
    return img_size == NATIVE


def read_picture(image: ImageLike, max_pixels: int) -> Image.Image:
    """Return an image, given as a file or in memory, as an RGB picture; of a large scene a smaller one.

    Raises:
        DataError: that is not possible.
    """
    if isinstance(image, (str, Path)) and is_scene(image):
        with open_raster(image) as scene:
            return scene.preview().picture()
    if isinstance(image, (str, Path)):
        return read_image(image, max_pixels=max_pixels)
    return picture_in_memory(_decoded(image, max_pixels), max_pixels=max_pixels)


def _decoded(image: Image.Image | NDArray[Any] | Encoded, max_pixels: int) -> Image.Image | NDArray[Any]:
    if not isinstance(image, Encoded):
        return image
    read = image.read(max_pixels=max_pixels)
    if not isinstance(read, Image.Image):
        raise TypeError("scenes were not asked for")
    return read


def _transformed(image: ImageLike, transform: Transform, scenes: bool, max_pixels: int) -> _Prepared:
    read: AnyImage
    if isinstance(image, (str, Path)):
        read = read_any(image, max_pixels=max_pixels) if scenes else read_image(image, max_pixels=max_pixels)
    elif isinstance(image, Encoded):
        read = image.read(scenes=scenes, max_pixels=max_pixels)
    else:
        read = picture_in_memory(image, max_pixels=max_pixels)
    with decoding():  # transforms of large images meet Pillow's own pixel limit
        sample = Sample(*transform(read, None), read.size[::-1], 0)
    valid = valid_pixels(read)
    return sample, None if valid is None else torch.from_numpy(valid)


def _alone(samples: Sequence[Sample]) -> Batch:
    """Make a batch of the patches of one image."""
    (sample,) = samples
    return Batch(sample.image, [None], torch.tensor([sample.size]), torch.tensor([sample.position]))


class _Rows(NamedTuple):
    """How rows of an image are prepared, and whether scenes have all their bands."""

    prepare: Callable[[NDArray[np.uint8] | NDArray[np.float32]], Tensor]
    preprocessing: Preprocessing
    scenes: bool

    def channels(self, band: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Rows of a picture, uint8 [r, W, 3], as the model takes them."""
        wanted = self.preprocessing
        if wanted.input_size[0] == 3 and wanted.samples == "uint8":
            return band
        return samples_of(Image.fromarray(np.ascontiguousarray(band)), wanted)


@torch.inference_mode()
def _embedded(image: ImageLike, backbone: nn.Module, rows: _Rows, amp: str, max_pixels: int) -> _Prepared:
    """Embed an image in strips at its own size."""
    device = next(backbone.parameters()).device
    if rows.scenes and isinstance(image, (str, Path)) and is_scene(image):
        return _embedded_scene(image, backbone, rows, amp, max_pixels)
    whole = image if isinstance(image, (str, Path)) else _decoded(image, max_pixels)
    with open_strips(whole, max_pixels=max_pixels) as opened:
        if opened.note is not None:
            notify(opened.note)
        size = (opened.height, opened.width)
        strips = (rows.prepare(rows.channels(band))[None].to(device) for band in opened.bands)
        with autocast(device, amp):
            patches = backbone.embed_strips(strips, size)  # type: ignore[operator]
    return Sample(patches, None, size, 0), None


def _embedded_scene(image: str | Path, backbone: nn.Module, rows: _Rows, amp: str, max_pixels: int) -> _Prepared:
    device = next(backbone.parameters()).device
    with open_raster(image) as scene:
        size = (scene.height, scene.width)
        check_pixels(*size, max_pixels)
        valid = torch.ones(size, dtype=torch.bool)

        def strips() -> Iterator[Tensor]:
            top = 0
            for stripe in scene.stripes():
                if stripe.valid is not None:
                    valid[top : top + stripe.height] = torch.from_numpy(stripe.valid)
                top += stripe.height
                yield rows.prepare(samples_of(stripe, rows.preprocessing))[None].to(device)

        with autocast(device, amp):
            patches = backbone.embed_strips(strips(), size)  # type: ignore[operator]
    return Sample(patches, None, size, 0), valid
