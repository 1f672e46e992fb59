"""Printing: tables and numbers for people, JSON for programs, complaints and notes on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vision_ssm import moved

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "amount",
    "complain",
    "console",
    "duration",
    "memory",
    "note",
    "percent",
    "print_json",
    "print_table",
    "progress_bar",
]

moved.answer(__name__)

WIDTH_WHEN_PIPED = 160  # a file or a pipe has no width; narrow tables would cut names


def console(*, stderr: bool = False) -> Console:
    """Return a console on the current standard output (or error): colours and live displays only on a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WHEN_PIPED
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def complain(message: str) -> None:
    """Print one error message on standard error, marked as such."""
    out = console(stderr=True)
    out.print("error: ", style="bold red", end="")
    out.print(message, soft_wrap=True)


def note(message: str) -> None:
    """Print on standard error what is worth knowing and stops nothing."""
    console(stderr=True).print(f"note: {message}", soft_wrap=True)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[str] = ()
) -> None:
    """Print a table; the columns named in ``numeric`` are aligned right. Without column names there is no header."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headed = any(columns)
    table = Table(box=box.SIMPLE_HEAD if headed else None, pad_edge=False, show_header=headed)
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = console()
    if title:
        out.print(title, style="bold", soft_wrap=True)
    out.print(table)
    if not headed:
        out.print()


def amount(value: float | None, unit: str = "") -> str:
    """Write a count with three or more digits and K, M, G or T: 7148008 -> '7.15 M'."""
    if value is None:
        return "-"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.{2 if value < 100 * size else 1}f} {letter}{unit}"
    return f"{value:g} {unit}".rstrip()


def memory(size: int | None) -> str:
    """Write a number of bytes in MiB or GiB."""
    if size is None:
        return "-"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def percent(value: float) -> str:
    """Write a share of one: 0.9731 -> '97.31 %'."""
    return f"{100 * value:.2f} %"


@contextmanager
def progress_bar(label: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar with the time left, on a terminal only; yields what to call with (done, in all)."""
    out = console(stderr=True)
    if not (shown and out.is_terminal):
        yield None
        return
    from rich.progress import Progress

    with Progress(console=out, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def duration(seconds: float) -> str:
    """Write a time in the two units that matter: 5025 -> '1 h 24 min'."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"
