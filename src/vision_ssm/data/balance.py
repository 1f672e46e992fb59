"""The order of an epoch in which every group of samples comes equally often, however many samples it has."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced_order"]


def balanced_order(groups: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return which sample comes when, and how often it has come before: two int64 [length].

    Each of the G groups that occur comes floor or ceil(length / G) times. Within a group every sample comes once before
    any comes again, so the numbers of two of them differ by at most one; those of a large group may not come at all.

    Args:
        groups: a number per sample, int64 [length].
        generator: that everything is drawn from.
    """
    length = len(groups)
    members = [torch.nonzero(groups == group).flatten() for group in sorted(set(groups.tolist()))]
    one_more = torch.randperm(len(members), generator=generator) < length % len(members)
    samples, again = [], []
    for more, own in zip(one_more.tolist(), members, strict=True):
        count = length // len(members) + more
        rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-count // len(own)))]
        samples.append(torch.cat([own[:0], *rounds])[:count])
        again.append(torch.arange(count) // len(own))
    mixed = torch.randperm(length, generator=generator)
    return torch.cat(samples)[mixed], torch.cat(again)[mixed]
