"""``vision-ssm models``: every model of this library with its size, cost and published accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vision_ssm.cli.console import amount, memory, print_json, print_table, say
from vision_ssm.errors import ConfigError

if TYPE_CHECKING:
    from vision_ssm.analysis.table import ModelRow

NAME = "models"
SUMMARY = "List the models of this library with parameters, multiply-adds, published accuracy, and what was downloaded."
EXAMPLES = """examples:
  vision-ssm models
  vision-ssm models small
  vision-ssm models --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("filter", nargs="?", default="", metavar="TEXT", help="only models whose name contains TEXT")
    parser.add_argument(
        "--recount", action="store_true", help="build and count every model again (slower) instead of reading the table"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from vision_ssm.analysis import model_table
    from vision_ssm.models.downloaded import downloaded
    from vision_ssm.models.listing import WHOLE

    rows = model_table(options.filter, recount=options.recount)
    whole = [row for name, row in WHOLE.items() if options.filter in name]
    denoisers = [row for row in rows if row.kind == "denoiser"]
    backbones = [row for row in rows if row not in denoisers]
    files = {row.name: downloaded(row.weights) for row in whole}
    if options.json:
        known = [{**row.to_dict(), "file": files[row.name] and str(files[row.name])} for row in whole]
        print_json([row.to_dict() for row in rows] + known)
        return 0
    if not rows and not whole:
        raise ConfigError(
            f"no model of this library has {options.filter!r} in its name; `vision-ssm models` lists all."
        )
    if backbones:
        _print_backbones(backbones)
    if whole:
        shown = [
            (row.name, row.task, amount(row.params), row.published, row.source, _size(files[row.name])) for row in whole
        ]
        columns = ("with heads", "task", "parameters", "published", "source", "downloaded")
        print_table(None, columns, shown, numeric=("parameters",))
    if denoisers:
        _print_denoisers(denoisers)
    here = [*(row.file for row in rows), *map(str, filter(None, files.values()))]
    if folders := sorted({str(Path(file).parent) for file in here if file}):
        say(f"Downloaded files are in {', '.join(folders)}")
    return 0


def _size(file: str | Path | None) -> str:
    """Size of a file that was downloaded."""
    return "-" if file is None else memory(Path(file).stat().st_size)


def _print_backbones(rows: Sequence[ModelRow]) -> None:
    from vision_ssm.models.variant import list_aliases

    short = {full: alias for alias, full in list_aliases().items()}
    print_table(
        None,
        ("model", "input", "parameters", "multiply-adds", "published top-1", "source", "downloaded"),
        [
            (
                f"{row.name} ({short[row.name]})" if row.name in short else row.name,
                f"{row.height} x {row.width}",
                amount(row.params),
                amount(row.macs),
                "-" if row.top1 is None else f"{row.top1:.1f} %",
                row.source or "-",
                _size(row.file),
            )
            for row in rows
        ],
        numeric=("parameters", "multiply-adds", "published top-1"),
    )


def _print_denoisers(rows: Sequence[ModelRow]) -> None:
    print_table(
        None,
        ("denoiser", "input", "parameters", "multiply-adds", "works on", "weights"),
        [
            (
                row.name,
                f"{row.channels} x {row.height} x {row.width}",
                amount(row.params),
                amount(row.macs),
                f"latents of {row.autoencoder}" if row.autoencoder else "pixels",
                "none released",
            )
            for row in rows
        ],
        numeric=("parameters", "multiply-adds"),
    )
