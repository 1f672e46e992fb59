"""Epochs in which every group comes equally often."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from vision_ssm.data.balance import balanced_order
from vision_ssm.data.loader import epoch_order

GROUPS = torch.tensor([0] * 70 + [5] * 20 + [2] * 10 + [9])


def drawn(seed: int) -> tuple[list[int], list[int]]:
    samples, again = balanced_order(GROUPS, torch.Generator().manual_seed(seed))
    return samples.tolist(), again.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_group_comes_equally_often_and_every_sample_of_it(seed: int) -> None:
    samples, again = drawn(seed)
    assert len(samples) == len(GROUPS) == 101
    counts = Counter(GROUPS[samples].tolist())
    assert sorted(counts.values()) == [25, 25, 25, 26]
    times = Counter(samples)
    for group in counts:
        own = [times[position] for position in range(101) if GROUPS[position] == group]
        assert max(own) - min(own) <= 1
    assert times[100] in (25, 26), "the only one of its group"
    assert len(set(zip(samples, again, strict=True))) == 101, "no draw comes twice, so none is augmented alike"


def test_the_order_is_drawn_from_the_generator_alone() -> None:
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    samples = drawn(3)[0]
    first = Counter(GROUPS[samples[:50]].tolist())
    assert min(first.values()) > 4, "mixed, not group by group"


def rows(epoch: int, rank: int = 0, world: int = 1, repeats: int = 1) -> list[tuple[int, int]]:
    order = epoch_order(
        101, seed=7, epoch=epoch, shuffle=True, groups=GROUPS, rank=rank, world_size=world, repeats=repeats
    )
    return [tuple(row) for row in order.tolist()]


def test_processes_share_one_balanced_epoch() -> None:
    whole = rows(4)
    parts = [rows(4, rank, 2) for rank in range(2)]
    assert [row for pair in zip(*parts, strict=True) for row in pair] == [*whole, whole[0]]
    assert rows(4) == whole != rows(5)


def test_repeats_of_what_comes_again_are_all_different() -> None:
    found = rows(0, repeats=3)
    assert len(found) == len(set(found))
