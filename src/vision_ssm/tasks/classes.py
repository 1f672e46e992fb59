"""Which output of a model is which class of the data."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from vision_ssm.data.labelled.sources import ClassSamples, renumbered
from vision_ssm.tasks.matching import match_names

__all__ = ["IMAGENET_CLASSES", "imagenet_names", "match_classes", "matched"]

IMAGENET_CLASSES = 1000


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """Return ImageNet-1k's class names in the order of the published models' outputs. Two of them are 'crane'."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_descriptions())


def match_classes(model_names: Sequence[str], data_names: Sequence[str]) -> list[int]:
    """Return, for each class of the data, the model output that stands for it.

    Classes are matched by name. The data may lack classes that the model knows; folders of ImageNet may be named by
    synset (``n01440764``).

    Raises:
        DataError: the data has classes that the model does not know; names them.
    """
    names = list(model_names)
    if tuple(names) == imagenet_names():
        from timm.data.imagenet_info import ImageNetInfo

        synsets = list(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]
        if set(data_names) <= set(synsets):
            names = synsets
    return match_names(names, data_names, advice="Class folders must be named as in training.")


def matched(samples: ClassSamples, class_names: Sequence[str]) -> ClassSamples:
    """Return the samples with their classes numbered as a model's outputs, which it knows by these names.

    Raises:
        DataError: they have classes that the model does not know.
    """
    if samples.class_names == tuple(class_names):
        return samples
    return renumbered(samples, match_classes(class_names, samples.class_names), class_names)
