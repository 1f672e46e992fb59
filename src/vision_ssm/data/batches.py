"""What goes from a data set to a model: samples one by one, then batches of them. No task and no model here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vision_ssm.data.bands import AnyImage

__all__ = ["Batch", "Sample", "Samples", "Transform", "stack"]


class Samples(Protocol):
    """A data set: ``samples[i]`` is (image, target), in an order that is the same on every machine.

    Nothing is decoded before it is asked for. What a target is, is between the task and its data.

    Attributes:
        name: for titles and logs.
        paths: one file name (or, where there are no files, an identifier such as ``digits/0042``) per sample.
        fingerprint: changes when the samples or their targets do; folders may move.

    An attribute ``found``, where there is one, says in a line for people what these samples are; ``scenes``, which of
    them are scenes, where the paths are no files that could be asked.
    """

    name: str
    paths: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A digest of the names and targets of all samples."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Decode one sample: (RGB picture or scene, target). Raises DataError naming the file if that fails."""


class Transform(Protocol):
    """From an image and its target to what the model and its loss take; both move together."""

    def __call__(self, image: AnyImage, target: Any) -> tuple[Tensor, Any]:
        """Return the image as float32 [C, H, W] and the target that belongs to it; ``target`` may be None."""


class Sample(NamedTuple):
    """One transformed sample: image [C, H, W] float32, target, (height, width) in its file, position in the data."""

    image: Tensor
    target: Any
    size: tuple[int, int]
    position: int


class Batch(NamedTuple):
    """Samples together.

    Attributes:
        images: [B, C, H, W] float32, or what the model takes in their place.
        targets: what is to be predicted, as the task's `collate` puts it; nested tensors are moved between devices.
        sizes: (height, width) of each image in its file, [B, 2] int64.
        indices: positions in the data set, [B] int64.
        valid: for each image bool [H, W], in pixels of its file, where it holds data, or None for everywhere; None
            where nobody asked.
    """

    images: Any
    targets: Any
    sizes: Tensor
    indices: Tensor
    valid: Sequence[Tensor | None] | None = None

    def to(self, device: torch.device) -> Batch:
        """Move images and targets; what is about the files stays where they are looked up."""
        return self._replace(images=_moved(self.images, device), targets=_moved(self.targets, device))


def stack(samples: Sequence[Sample]) -> Batch:
    """Put samples of one size together: images [B, C, H, W]; targets a tensor of numbers, or of stacked tensors.

    Targets of any other kind, and None, stay a list.
    """
    images, targets, sizes, indices = zip(*samples, strict=True)
    joined: Any = list(targets)
    if all(isinstance(target, Tensor) for target in targets):
        joined = torch.stack(targets)
    elif all(isinstance(target, int | float) for target in targets):
        joined = torch.tensor(targets)
    return Batch(torch.stack(images), joined, torch.tensor(sizes), torch.tensor(indices))


def _moved(value: Any, device: torch.device) -> Any:
    if hasattr(value, "to"):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    return [_moved(item, device) for item in value] if isinstance(value, list | tuple) else value
