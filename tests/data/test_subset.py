"""Some of the samples of a data set."""

from __future__ import annotations

import pickle

import pytest

from vision_ssm.data.subset import Subset


class Numbers:
    name, fingerprint, class_names, found = "numbers", "n", ("even", "odd"), "5 numbers"
    paths = tuple("abcde")
    targets = (0, 1, 0, 1, 0)

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[int, int]:
        return 10 * index, self.targets[index]


def test_a_subset_is_as_usable_as_the_whole() -> None:
    part = Subset(Numbers(), (4, 1), ("targets",))
    assert (len(part), part.paths, part.targets) == (2, ("e", "b"), (0, 1))
    assert [part[index] for index in range(2)] == [(40, 0), (10, 1)]
    assert (part.class_names, part.name, part.found) == (("even", "odd"), "numbers", "2 of 5 numbers")
    assert Subset(part, (1,), ("targets",))[0] == (10, 1)
    with pytest.raises(AttributeError, match="palette"):
        _ = part.palette


def test_its_fingerprint_is_of_what_it_holds() -> None:
    prints = {Subset(Numbers(), positions).fingerprint for positions in ((4, 1), (1, 4), (4,))}
    assert len(prints) == 3
    assert Subset(Numbers(), [4, 1]).fingerprint in prints


def test_it_travels_to_loading_processes() -> None:
    part = pickle.loads(pickle.dumps(Subset(Numbers(), (4, 1), ("targets",), "two")))
    assert (part[1], part.targets, part.found) == ((10, 1), (0, 1), "two")
