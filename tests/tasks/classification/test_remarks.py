"""What is said about the counts of classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vision_ssm.tasks.classification.remarks import remarks_on_classes


def samples(*counts: int) -> Any:
    targets = tuple(target for target, count in enumerate(counts) for _ in range(count))
    return SimpleNamespace(class_names=("cat", "dog", "fox"), targets=targets)


def test_even_classes_are_not_remarked_on() -> None:
    assert remarks_on_classes(samples(5, 9, 40), samples(1, 1, 1), balanced=False) == []


def test_rare_unseen_and_uneven_classes_are() -> None:
    told = remarks_on_classes(samples(4, 50, 0), samples(2, 0, 0), balanced=False)
    assert told[:2] == [
        "'cat', 'fox' have fewer than 5 images to train on.",
        "'dog', 'fox' have no held-out image, so no score tells of them.",
    ]
    assert told[2].startswith("The classes have 4 to 50 images to train on: data.balanced draws")
    assert len(remarks_on_classes(samples(4, 50, 0), samples(2, 0, 0), balanced=True)) == 2
