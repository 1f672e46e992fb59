"""Printing: tables and numbers for people, JSON for programs, complaints and notes on standard error.

All text goes through here. Names of classes, files and tensors come from strangers: `printable` shows what would move
the cursor, change colours or turn the direction of reading as an escape. What a stream cannot encode is escaped too.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from vision_ssm import moved
from vision_ssm.errors import VisionSSMError

if TYPE_CHECKING:
    from io import TextIOWrapper

    from rich.console import Console

__all__ = [
    "OutputLostError",
    "amount",
    "complain",
    "console",
    "delivered",
    "duration",
    "memory",
    "note",
    "percent",
    "print_json",
    "print_table",
    "print_text",
    "printable",
    "progress_bar",
    "say",
    "stage_bars",
    "usable_streams",
]

moved.answer(__name__)

WIDTH_WHEN_PIPED = 160  # a file or a pipe has no width unless COLUMNS says one; narrow tables would cut names


_UNSEEN = frozenset(("Cc", "Cs", "Zl", "Zp"))  # controls, bytes that are no text, separators of lines
_TURNING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
_MARKS = "\u061c\u200b\u200e\u200f\ufeff"  # of direction, and of no width


class OutputLostError(VisionSSMError):
    """What was printed did not arrive: the disk is full, or the reader has left (``reader_left``)."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"cannot write to standard output: {reason.strerror or reason}.")
        self.reader_left = isinstance(reason, BrokenPipeError)


def printable(text: str) -> str:
    """Return ``text`` with everything that a terminal would obey rather than show written as an escape.

    That is control characters (newlines too: one message is one line), marks of the reading direction, and the bytes of
    file names that are no text.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_escaped, text))


def _is_unsafe(character: str) -> bool:
    return (
        unicodedata.category(character) in _UNSEEN
        or unicodedata.bidirectional(character) in _TURNING
        or character in _MARKS
    )


def _escaped(character: str) -> str:
    if not _is_unsafe(character):
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is no text
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


@contextmanager
def usable_streams() -> Iterator[None]:
    """Within the block standard output and error exist and take any character, whatever their encoding."""
    with ExitStack() as restoring:
        for name in ("stdout", "stderr"):
            stream: TextIOWrapper | None = getattr(sys, name)
            if stream is None:  # closed by whoever started us; the next file opened would take its place
                nowhere = restoring.enter_context(open(os.devnull, "w", encoding="utf-8"))
                setattr(sys, name, nowhere)
                restoring.callback(setattr, sys, name, None)
            elif hasattr(stream, "reconfigure"):
                restoring.callback(_reconfigure, stream, stream.errors)
                stream.reconfigure(errors="backslashreplace")
        yield


@contextmanager
def delivered() -> Iterator[None]:
    """At the end of the block everything printed in it has left this process.

    Raises:
        OutputLostError: it cannot be written.
    """
    try:
        yield
    finally:
        with _arriving():
            sys.stdout.flush()


def _reconfigure(stream: TextIOWrapper, errors: str | None) -> None:
    with suppress(OSError, ValueError):  # reconfiguring flushes; what could not be written was complained of
        stream.reconfigure(errors=errors)


@contextmanager
def _arriving() -> Iterator[None]:
    """Within the block, output that cannot be written becomes an OutputLostError, once."""
    try:
        yield
    except OSError as reason:
        _abandon(sys.stdout)
        raise OutputLostError(reason) from None


def _abandon(stream: Any) -> None:
    """Send the rest of a stream nowhere: Python would try again when it ends, and change the exit code."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def console(*, stderr: bool = False) -> Console:
    """Return a console on the current standard output (or error): colours and live displays only on a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else WIDTH_WHEN_PIPED
    return _console_class()(file=stream, width=width, highlight=False, emoji=False, markup=False)


@cache
def _console_class() -> type[Console]:
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - rich, which calls this for the error it has caught, would end the process

    return PlainConsole


def say(message: str, *, style: str | None = None, on: Console | None = None) -> None:
    """Print one line on standard output; ``on`` a console that shows a bar, to make the bar give way.

    Raises:
        OutputLostError: it cannot be written.
    """
    with _arriving():
        _print_line(on or console(), printable(message), style)


def print_text(text: str) -> None:
    """Print a text of our own, lines and all, on standard output.

    Raises:
        OutputLostError: it cannot be written.
    """
    with _arriving():
        print(text, end="")


def complain(message: str) -> None:
    """Print one error message on standard error, marked as such."""
    with _unless_lost():
        out = console(stderr=True)
        _print_line(out, printable(message), mark="error: ", style_of_mark="bold red")


def note(message: str, *, mark: str = "note: ", style: str | None = None) -> None:
    """Print on standard error what is worth knowing and stops nothing."""
    with _unless_lost():
        _print_line(console(stderr=True), f"{mark}{printable(message)}", style)


def _print_line(
    out: Console, message: str, style: str | None = None, *, mark: str = "", style_of_mark: str = ""
) -> None:
    """Print one line; for a terminal it is broken between words, and never inside one, so that paths can be copied."""
    from rich.text import Text

    text = Text.assemble((mark, style_of_mark), message)
    if out.is_terminal and len(text) > out.width:
        broken = textwrap.wrap(text.plain, out.width, break_long_words=False, break_on_hyphens=False)
        text = Text("\n").join([text[: len(broken[0])], *map(Text, broken[1:])])
    out.print(text, style=style, soft_wrap=True)


@contextmanager
def _unless_lost() -> Iterator[None]:
    try:
        yield
    except OSError:  # nobody can be told that nobody can be told
        _abandon(sys.stderr)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on standard output; what the stream cannot show is escaped as JSON does.

    Raises:
        OutputLostError: it cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    encoding = sys.stdout.encoding or "utf-8"
    with _arriving():
        print("".join(_in_json(character, encoding) for character in text))


def _in_json(character: str, encoding: str) -> str:
    # The line ends are those of the layout; within texts they are escapes already.
    if character == "\n" or not (_is_unsafe(character) or _cannot_encode(character, encoding)):
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[start : start + 2].hex()}" for start in range(0, len(units), 2))


def _cannot_encode(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return True
    return False


def print_table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[str] = ()
) -> None:
    """Print a table; the columns named in ``numeric`` are aligned right. Without column names there is no header.

    Cells are broken between words. Where not even the longest words fit, every row becomes lines of its own.

    Raises:
        OutputLostError: it cannot be written.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headed = any(columns)
    cells = [[printable(cell) for cell in row] for row in rows]
    out = console()
    widths = _column_widths([*map(printable, columns)], cells, numeric, out.width)
    table = Table(box=box.SIMPLE_HEAD if headed else None, pad_edge=False, show_header=headed)
    for at, column in enumerate(columns):
        justify: Any = "right" if column in numeric else "left"
        width = None if widths is None else widths[at]
        table.add_column(Text(printable(column)), justify=justify, overflow="fold", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    with _arriving():
        if title:
            _print_line(out, printable(title), "bold")
        if widths is None and headed:
            for row in cells:
                for column, cell in zip(columns, row, strict=True):
                    _print_line(out, f"{printable(column)}: {cell}" if column else cell)
                out.print()
            return
        out.print(table)
        if not headed:
            out.print()


_BETWEEN_COLUMNS = 3


def _column_widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str], available: int
) -> list[int] | None:
    """Widths in which no word is broken; None where there are none. Numbers stay with their units."""
    from rich.cells import cell_len

    whole = [[column, *cells] for column, *cells in zip(columns, *rows, strict=True)]
    words = [
        [cell for text in texts[1:] for cell in ([text] if texts[0] in numeric else text.split())] for texts in whole
    ]
    least = [
        max(map(cell_len, [*texts[0].split(), *found]), default=0) for texts, found in zip(whole, words, strict=True)
    ]
    spare = available - sum(least) - _BETWEEN_COLUMNS * len(columns)
    if spare < 0:
        return None
    wanted = [max(map(cell_len, texts)) - width for texts, width in zip(whole, least, strict=True)]
    given = [0] * len(columns)
    for place, at in enumerate(sorted(range(len(columns)), key=wanted.__getitem__)):
        given[at] = min(wanted[at], spare // (len(columns) - place))
        spare -= given[at]
    return [width + more for width, more in zip(least, given, strict=True)]


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


@contextmanager
def stage_bars(*, shown: bool = True) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show one bar after the other, on a terminal only; yields what to call with (what is being done, done, in all)."""
    out = console(stderr=True)
    if not (shown and out.is_terminal):
        yield None
        return
    from rich.progress import Progress

    with Progress(console=out, transient=True) as progress:
        task = progress.add_task("", total=None, visible=False)

        def show(stage: str, done: int, total: int) -> None:
            if progress.tasks[0].description != stage:
                progress.reset(task, description=stage, visible=True)
            progress.update(task, completed=done, total=total)

        yield show


def duration(seconds: float) -> str:
    """Write a time in the two units that matter: 5025 -> '1 h 24 min'."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"
