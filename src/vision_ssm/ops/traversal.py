"""The orders in which a scan visits the tokens of a map, as affine walks that need no gathered copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vision_ssm.errors import ShapeError

__all__ = ["Traversal", "check_within", "flatten", "unflatten"]

WORDS = 5  # integers per traversal in the operator's schema


@dataclass(frozen=True)
class Traversal:
    """An affine walk of two levels over token offsets.

    Step ``t`` (``0 <= t < length``) visits token
    ``start + (t // inner_count) * outer_stride + (t % inner_count) * inner_stride``.
    Tokens that no step visits contribute nothing and receive zero.
    """

    start: int
    inner_count: int
    inner_stride: int
    outer_stride: int
    length: int

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

    def token(self, step: int) -> int:
        """Return the token that step ``step`` visits."""
        outer, inner = divmod(step, self.inner_count)
        return self.start + outer * self.outer_stride + inner * self.inner_stride


def flatten(traversals: Sequence[Traversal]) -> list[int]:
    """Pack traversals into the flat integer list of the operator's schema."""
    return [
        word
        for walk in traversals
        for word in (walk.start, walk.inner_count, walk.inner_stride, walk.outer_stride, walk.length)
    ]


def unflatten(words: Sequence[int]) -> list[Traversal]:
    """Unpack the operator's flat integer list."""
    return [Traversal(*words[at : at + WORDS]) for at in range(0, len(words), WORDS)]


def check_within(traversals: Sequence[Traversal], tokens: int) -> None:
    """Raise ShapeError if a walk is malformed, leaves the ``tokens`` tokens it is used on, or visits one twice."""
    for index, walk in enumerate(traversals):
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
