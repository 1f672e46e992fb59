"""The picture of which class is taken for which, drawn alike by every task that counts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vision_ssm.plots import BLUE, INK, png_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_matrix"]

WRITTEN = 20
"""Up to so many classes the shares are written into the cells; of more the commonest confusions are listed beside."""

WHOLE = 140
"""Larger matrices would show little but their diagonal: of them `PART` classes are drawn, and the others as one."""

PART = 60

LISTED = 20


def draw_matrix(
    counts: NDArray[np.int64],
    names: Sequence[str],
    path: str | Path,
    *,
    title: str,
    unit: str,
    asked: str = "true",
    told: str = "predicted",
) -> None:
    """Draw the counts [true class, predicted class]; each row shows how one class was spread.

    Colours are linear in the share of the row, from 0 to 100 %. How much there is of a class stands beside its name.
    Classes that occur on neither side are left out, unless none occurs. Of more than `WHOLE` those are drawn that have
    part in the commonest confusions.

    Args:
        counts: whole numbers [N, N].
        names: of the N classes.
        path: the PNG file to write.
        title: heading.
        unit: what is counted, such as ``images``.
        asked: what the rows are called, such as ``true`` or ``labelled``.
        told: what the columns are called.

    Raises:
        DataError: the picture cannot be written.
    """
    used = np.flatnonzero((counts.sum(0) > 0) | (counts.sum(1) > 0))
    used = used if len(used) else np.arange(len(counts))
    counts = counts[np.ix_(used, used)]
    names = [shortened(names[int(index)], 24) for index in used]
    listed = _commonest(counts, names)
    if len(names) > WHOLE:
        counts, names = _part(counts, names)
    total = len(names)
    side = 1.8 + 0.55 * total if total <= WRITTEN else 4 + 0.12 * total  # inches, the matrix alone
    font = 9.0 if total <= WRITTEN else 7.0
    # The matrix is exactly `side` inches wide; the picture is cut to whatever is written around it.
    with png_figure(path, (side, side), layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.grid(visible=False)
        of_class = counts.sum(1)
        shares = counts / np.maximum(of_class[:, None], 1)
        shown = axes.imshow(100 * shares, cmap=_blues(), vmin=0, vmax=100, interpolation="nearest")
        sized = [f"{name} ({_amount(int(amount))})" for name, amount in zip(names, of_class, strict=True)]
        upright = max(map(len, names)) * 0.075 < side / total
        axes.set_xticks(range(total), names, rotation=0 if upright else 90, fontsize=font)
        axes.set_yticks(range(total), sized, fontsize=font)
        axes.tick_params(length=0)
        axes.set_xlabel(told, labelpad=8)
        axes.set_ylabel(f"{asked} (number of {unit})", labelpad=8)
        axes.set_title("\n".join(_lines(title, side)), pad=10)
        for spine in axes.spines.values():
            spine.set_visible(True)
        scale = figure.colorbar(shown, cax=figure.add_axes((1 + 0.25 / side, 0, 0.18 / side, 1)))
        scale.set_label(f"% of the {unit} of each {asked} class")
        scale.outline.set_visible(False)
        if total <= WRITTEN:
            _write_shares(axes, shares)
        elif listed:
            _write_list(axes, listed, side)


def _part(counts: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The classes of the commonest confusions, in their order, and behind them all the others together."""
    chosen: dict[int, None] = {}
    off = _mistakes(counts)
    for cell in np.argsort(-off, axis=None, kind="stable"):
        chosen.update(dict.fromkeys(divmod(int(cell), len(names))))
        if len(chosen) >= PART:
            break
    kept = np.zeros(len(names), dtype=bool)
    kept[sorted(chosen)[:PART]] = True
    rows = np.vstack([counts[kept], counts[~kept].sum(0, keepdims=True)])
    both = np.hstack([rows[:, kept], rows[:, ~kept].sum(1, keepdims=True)])
    left = f"{len(names) - int(kept.sum()):,} other classes"
    return both, [*(name for name, here in zip(names, kept, strict=True) if here), left]


def _mistakes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    off = counts.copy()
    np.fill_diagonal(off, 0)
    return off


def _write_shares(axes: Axes, shares: NDArray[Any]) -> None:
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if share > 0.55 else INK)


def _commonest(counts: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """The confusions that occur most, in words; only those that occur oftener than all that are left out."""
    off = _mistakes(counts)
    order = np.argsort(off, axis=None, kind="stable")[::-1][: LISTED + 1]
    floor = max(1, int(off.flat[order[-1]]) if len(order) > LISTED else 0)
    pairs = [divmod(int(cell), len(names)) for cell in order[:LISTED] if off.flat[cell] > floor]
    return [f"{_amount(int(off[true, taken]))} ×  {names[true]}  as  {names[taken]}" for true, taken in pairs]


def _write_list(axes: Axes, lines: Sequence[str], side: float) -> None:
    left = 1 + 1.3 / side  # beside the scale of colours
    axes.text(left, 1, "Commonest confusions", transform=axes.transAxes, va="top", fontsize=11, fontweight="bold")
    text = "\n".join(lines)
    axes.text(left, 1 - 0.35 / side, text, transform=axes.transAxes, va="top", fontsize=9, linespacing=1.7)


def _lines(title: str, side: float) -> list[str]:
    """A title of one line, or of two where it is wider than the matrix."""
    name, colon, rest = title.rpartition(": ")
    return [name, rest] if colon and 0.1 * len(title) > side else [title]


def _amount(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "K")):
        if count >= size:
            return f"{count / (1000 if letter == 'K' else size):.3g} {letter}"
    return f"{count:,}"


def _blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blues", ["#ffffff", "#cfe0f1", "#6fa3d3", BLUE, "#123d6d"])
