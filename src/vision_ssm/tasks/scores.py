"""Scores by name and the tables that show them: what a task reports and every command can print. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Score", "Table"]


@dataclass(frozen=True)
class Score:
    """How one number that a task reports is called and read.

    Attributes:
        name: key in logs, files and results, such as ``top1``.
        title: for people, such as ``top-1``.
        unit: ``%`` for a share of one, which is shown in percent; else it follows the number; ``""`` for none.
        higher_is_better: whether more of it is better.
        minor: one of many, which is left out where there is a line for all of them.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool = True
    minor: bool = False

    def text(self, value: float) -> str:
        """Write a value: 0.9731 in ``%`` is '97.31 %', 0.0312 in ``px`` is '0.0312 px', nan is '-'."""
        if math.isnan(value):
            return "-"
        number = f"{100 * value:.2f}" if self.unit == "%" else f"{value:.4g}"
        return f"{number} {self.unit}".rstrip()

    def is_better(self, value: float, than: float | None) -> bool:
        """Tell whether ``value`` beats ``than``; any number beats None and nan, nan beats nothing."""
        if math.isnan(value):
            return False
        if than is None or math.isnan(than):
            return True
        return value > than if self.higher_is_better else value < than


@dataclass(frozen=True)
class Table:
    """A table for people: a title, column names, rows of text, and which columns hold numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[str] = field(default=())
