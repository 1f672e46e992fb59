"""The orders in which a scan visits the tokens of a map, as affine walks that need no gathered copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.errors import ShapeError

__all__ = [
    "Cover",
    "Traversal",
    "check_within",
    "checked_traversals",
    "cover_of",
    "flatten",
    "followed",
    "unflatten",
    "written",
]

WORDS = 9  # integers per traversal in the operator's schema


@dataclass(frozen=True)
class Traversal:
    """An affine walk of two levels over token offsets.

    Step ``t`` (``0 <= t < length``) visits token
    ``start + (t // inner_count) * outer_stride + (t % inner_count) * inner_stride``.
    Tokens that no step visits contribute nothing and receive zero.

    With ``reset`` every run of ``inner_count`` steps is a sequence of its own: the state starts at zero again. The
    output of a step is written at the token that the step visits, or where ``output`` (start, inner stride, outer
    stride) says; see :meth:`written_as`.
    """

    start: int
    inner_count: int
    inner_stride: int
    outer_stride: int
    length: int
    reset: bool = False
    output: tuple[int, int, int] | None = None

    @classmethod
    def sequence(cls, length: int, *, reverse: bool = False) -> Traversal:
        """Walk ``length`` tokens in memory order, or from the last to the first."""
        count = max(length, 1)
        return cls(length - 1, count, -1, 0, length) if reverse and length else cls(0, count, 1, 0, length)

    @classmethod
    def rows(cls, height: int, width: int, *, reverse: bool = False) -> Traversal:
        """Walk a row-major ``height x width`` map row after row (cross-scan directions 0 and 2)."""
        return cls.sequence(height * width, reverse=reverse)

    @classmethod
    def columns(cls, height: int, width: int, *, reverse: bool = False) -> Traversal:
        """Walk a row-major ``height x width`` map column after column (cross-scan directions 1 and 3)."""
        length, sign = height * width, -1 if reverse else 1
        return cls(length - 1 if reverse and length else 0, max(height, 1), sign * width, sign, length)

    @classmethod
    def each_row(cls, height: int, width: int, *, reverse: bool = False) -> Traversal:
        """Walk every row of a row-major ``height x width`` map as a sequence of its own, or each from its end."""
        start, stride = (max(width, 1) - 1, -1) if reverse else (0, 1)
        return cls(start, max(width, 1), stride, width, height * width, reset=True)

    @classmethod
    def each_column(cls, height: int, width: int, *, reverse: bool = False) -> Traversal:
        """Walk every column of a row-major ``height x width`` map as a sequence of its own, or each from its end."""
        start, stride = ((max(height, 1) - 1) * width, -width) if reverse else (0, width)
        return cls(start, max(height, 1), stride, 1, height * width, reset=True)

    @classmethod
    def subgrid(
        cls, height: int, width: int, *, step: int, row: int, column: int, column_major: bool = False
    ) -> Traversal:
        """Walk every ``step``-th token of every ``step``-th row, starting at (``row``, ``column``).

        The four walks of EfficientVMamba's atrous scan are ``step=2`` with offsets (0, 0) and (0, 1) row-major,
        (1, 0) and (1, 1) column-major.
        """
        if step < 1 or not (0 <= row < step and 0 <= column < step):
            raise ShapeError(
                f"subgrid needs step >= 1 and offsets within [0, step), got step={step}, row={row}, column={column}"
            )
        tall, wide = -(-(height - row) // step), -(-(width - column) // step)
        start, down, right = row * width + column, step * width, step
        if column_major:
            return cls(start, max(tall, 1), down, right, tall * wide)
        return cls(start, max(wide, 1), right, down, tall * wide)

    def written_as(self, other: Traversal) -> Traversal:
        """Return this walk with the output of each step written at the token that the same step of ``other`` visits.

        Raises:
            ShapeError: the walks differ in length or in the length of their runs.
        """
        if (self.length, self.inner_count) != (other.length, other.inner_count):
            raise ShapeError(
                f"walks of {self.length} steps in runs of {self.inner_count} and of {other.length} steps in runs of "
                f"{other.inner_count} cannot share their outputs' places"
            )
        return replace(self, output=(other.start, other.inner_stride, other.outer_stride))

    def writes(self) -> Traversal:
        """Return the walk over the tokens that the outputs are written at."""
        if self.output is None:
            return self
        start, inner, outer = self.output
        return replace(self, start=start, inner_stride=inner, outer_stride=outer, output=None)

    def token(self, step: int) -> int:
        """Return the token that step ``step`` visits."""
        outer, inner = divmod(step, self.inner_count)
        return self.start + outer * self.outer_stride + inner * self.inner_stride

    def tokens(self, steps: Tensor) -> Tensor:
        """Return the tokens that ``steps``, a tensor of whole numbers, visit."""
        within = self.start + steps * self.inner_stride
        if self.outer_stride == 0:  # a single run; a second one would go over it again
            return within
        # Not by the remainder, which exporters do not know for counts that are symbols.
        return within + steps // self.inner_count * (self.outer_stride - self.inner_count * self.inner_stride)

    def starts_anew(self, step: int) -> bool:
        """Tell whether the state before step ``step`` is zero."""
        return step == 0 or (self.reset and step % self.inner_count == 0)


def flatten(traversals: Sequence[Traversal]) -> list[int]:
    """Pack traversals into the flat integer list of the operator's schema."""
    return [
        word
        for walk in traversals
        for word in (
            walk.start,
            walk.inner_count,
            walk.inner_stride,
            walk.outer_stride,
            walk.length,
            int(walk.reset),
            *(walk.output or (walk.start, walk.inner_stride, walk.outer_stride)),
        )
    ]


def unflatten(words: Sequence[int]) -> list[Traversal]:
    """Unpack the operator's flat integer list."""
    walks = []
    for at in range(0, len(words), WORDS):
        start, inner_count, inner_stride, outer_stride, length, reset, *output = words[at : at + WORDS]
        same = tuple(output) == (start, inner_stride, outer_stride)
        place = None if same else (output[0], output[1], output[2])
        walks.append(Traversal(start, inner_count, inner_stride, outer_stride, length, bool(reset), place))
    return walks


def check_within(traversals: Sequence[Traversal], tokens: int) -> None:
    """Raise ShapeError if a walk is malformed, or leaves the ``tokens`` tokens or visits (or writes) one twice."""
    both = [(index, walk) for index, read in enumerate(traversals) for walk in {read, read.writes()}]
    for index, walk in both:
        if walk.length < 0 or walk.inner_count < 1:
            raise ShapeError(f"traversal {index} needs length >= 0 and inner_count >= 1, got {walk}")
        if walk.length == 0:
            continue
        # The offsets of an affine walk are extreme at the ends of its first, last and last full rows.
        last = walk.length - 1
        full = max((walk.length // walk.inner_count) * walk.inner_count - 1, 0)
        ends = {0, min(walk.inner_count, walk.length) - 1, last - last % walk.inner_count, last, full}
        corners = [walk.token(step) for step in ends]
        if min(corners) < 0 or max(corners) >= tokens:
            raise ShapeError(
                f"traversal {index} visits tokens {min(corners)}..{max(corners)}, "
                f"but the tensors hold tokens 0..{tokens - 1}: {walk}"
            )
        if _revisits(walk):
            raise ShapeError(f"traversal {index} visits some token twice: {walk}")


def _revisits(walk: Traversal) -> bool:
    """Tell whether inner and outer steps can reach the same token (a partial last row counts as a whole one)."""
    rows = -(-walk.length // walk.inner_count)
    inner_steps = min(walk.inner_count, walk.length)
    divisor = math.gcd(walk.inner_stride, walk.outer_stride)
    if divisor == 0:
        return walk.length > 1
    return abs(walk.outer_stride) // divisor < inner_steps and abs(walk.inner_stride) // divisor < rows


class Cover(IntEnum):
    """Which tokens the walks visit and write, by the numbers of csrc/include/types.h."""

    EACH = 0  # every walk visits all tokens
    ONCE = 1  # all walks together visit every token once
    SOME = 2  # neither


@lru_cache(maxsize=256)
def cover_of(traversals: tuple[Traversal, ...], tokens: int) -> Cover:
    """Tell which tokens the walks visit and write; of walks that leave the tokens or visit one twice, SOME."""
    try:
        check_within(traversals, tokens)
    except ShapeError:
        return Cover.SOME
    if all(walk.length == tokens for walk in traversals):
        return Cover.EACH
    if sum(walk.length for walk in traversals) != tokens:
        return Cover.SOME
    for walks in (traversals, tuple(walk.writes() for walk in traversals)):
        visited = torch.zeros(tokens, dtype=torch.bool)
        for walk in walks:
            visited[walk.tokens(torch.arange(walk.length))] = True
        if not visited.all():
            return Cover.SOME
    return Cover.ONCE


@lru_cache(maxsize=256)
def checked_traversals(words: tuple[int, ...], tokens: int) -> tuple[Traversal, ...]:
    """Unpack the operator's walk words; ShapeError unless every walk stays within ``tokens`` tokens."""
    if not words or len(words) % WORDS:
        raise ShapeError(f"walks take {WORDS} numbers each, and there is one at least, got {len(words)} numbers")
    traversals = tuple(unflatten(words))
    check_within(traversals, tokens)
    return traversals


def followed(x: Tensor, traversals: Sequence[Traversal]) -> Tensor:
    """Return x [B, K or 1, L, C] in the order of K walks, [B, K, T, C], T the steps of the longest.

    Out of place, in operations that transforms and exports of torch see through. A walk that has ended stays at its
    first token.
    """
    steps = torch.arange(max(walk.length for walk in traversals), device=x.device)
    parts = x.expand(-1, len(traversals), -1, -1).unbind(1)
    taken = [
        part
        if _goes_as_memory(walk, x.shape[2])
        else part.index_select(1, walk.tokens(torch.where(steps < walk.length, steps, 0)))
        for walk, part in zip(traversals, parts, strict=True)
    ]
    return torch.stack(taken, 1)


def written(y: Tensor, traversals: Sequence[Traversal], tokens: int, *, merge: bool) -> Tensor:
    """Return what the steps of each walk yield, [B, K, T, C], at its tokens: [B, K, L, C], or their sum [B, L, C].

    Tokens that a walk does not write get zero from it.
    """
    nothing = y.shape[2]
    steps = torch.arange(nothing, device=y.device)
    padded, outputs = F.pad(y, (0, 0, 0, 1)).unbind(1), []
    for walk, part in zip((walk.writes() for walk in traversals), padded, strict=True):
        own = steps[: walk.length]
        if _goes_as_memory(walk, tokens):
            outputs.append(part[:, :tokens])
            continue
        source = torch.full((tokens,), nothing, device=y.device).index_copy(0, walk.tokens(own), own)
        outputs.append(part.index_select(1, source))
    return sum(outputs[1:], outputs[0]) if merge else torch.stack(outputs, 1)


def _goes_as_memory(walk: Traversal, tokens: int) -> bool:
    """Tell whether a walk visits all tokens in their order; of sizes that are symbols only what holds for all."""
    strides = (walk.outer_stride, walk.inner_stride)
    known = all(isinstance(stride, int) for stride in strides)
    return known and strides == (0, 1) and not walk.start and walk.length == tokens
