"""``vision-ssm bench``: models side by side, in time, peak memory and share of the machine's ceiling."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_ssm.bench.settings import DTYPES, MODES, PRESETS
from vision_ssm.cli.arguments import image_size, output_file, whole_number
from vision_ssm.cli.console import amount, complain, console, memory, percent, print_json, print_table, say
from vision_ssm.errors import ConfigError

if TYPE_CHECKING:
    from vision_ssm.bench import Settings
    from vision_ssm.bench.report import Measured, Report

NAME = "bench"
SUMMARY = "Measure models side by side: time, peak memory, share of the machine's ceiling."
EXAMPLES = """Models are timed in turn, one sample of each per round, after warming up. Ratios refer to the first model.
NAME+unfused is a timm model with its fused attention turned off. See docs/bench.md for what exactly is measured.

examples:
  vision-ssm bench --models vim_tiny_patch16_224 deit_tiny_patch16_224 --img-size 224 512 1024
  vision-ssm bench --preset vim --threads 2 --output results/vim.json --plots
  vision-ssm bench --preset vim --img-size 1024 --dtype float32 --mode training
  vision-ssm bench --models vim_nano resnet18 --img-size 224 224x320 --batch-size 1 16
  vision-ssm bench --show results/vim.json --plots"""

SOME_FAILED, INTERRUPTED = 1, 130
DEFAULT_ROUNDS = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    many: dict[str, Any] = {"nargs": "+"}
    parser.add_argument(
        "--models", **many, metavar="NAME", help="names registered with timm, ours or not, or exported files"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="models, sizes and dtypes; other options go before it")
    parser.add_argument(
        "--img-size",
        **many,
        type=image_size,
        metavar="N|HxW",
        dest="sizes",
        help="side, or height x width, in pixels (default: 224)",
    )
    parser.add_argument(
        "--batch-size", **many, type=whole_number(1), metavar="N", help="images per pass (default: 1)", dest="batches"
    )
    parser.add_argument(
        "--dtype", **many, choices=DTYPES, dest="dtypes", help="of weights and activations alike (default: float32)"
    )
    parser.add_argument(
        "--threads", **many, type=whole_number(1), metavar="N", help="CPU threads (default: as many as torch takes)"
    )
    parser.add_argument("--mode", choices=MODES, help="forward, or forward and backward (default: inference)")
    parser.add_argument(
        "--rounds", type=whole_number(1), metavar="N", help=f"samples of every model (default: {DEFAULT_ROUNDS})"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:1 (default: cpu)")
    parser.add_argument(
        "--no-memory",
        action="store_true",
        help="leave out peak memory; a case that needs too much then ends the command instead of becoming a row",
    )
    parser.add_argument("--note", metavar="TEXT", help="what else a reader of the results should know")
    parser.add_argument(
        "--output", type=output_file(".json"), metavar="FILE", help="write the results here (.json), after every group"
    )
    parser.add_argument(
        "--plots", action="store_true", help="draw speed and memory against size: PNG files beside the results"
    )
    parser.add_argument(
        "--show", type=output_file(".json"), metavar="FILE", help="show or plot earlier results; measure nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Measure or show; 0, 1 when some cases failed, 130 after Ctrl-C."""
    _check(options)
    return _show(options) if options.show else _measure(options)


def _check(options: argparse.Namespace) -> None:
    if options.show:
        measuring = ("models", "preset", "sizes", "batches", "dtypes", "threads", "mode", "rounds", "device", "note")
        if options.output or options.no_memory or any(getattr(options, name) is not None for name in measuring):
            raise ConfigError("--show measures nothing: beside it only --plots and --json mean something")
    elif not (options.models or options.preset):
        raise ConfigError(f"nothing to measure: give --models, or --preset with one of {', '.join(PRESETS)}")
    if options.plots:
        if not (options.show or options.output):
            raise ConfigError("--plots draws beside the results: give --output FILE.json too")
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigError("--plots needs matplotlib: pip install matplotlib")


def settings_of(options: argparse.Namespace) -> Settings:
    """Turn the command line into settings: options first, then the preset, then the defaults. Raises ConfigError."""
    import torch

    from vision_ssm.bench import Settings

    chosen: dict[str, Any] = {"sizes": ((224, 224),), "threads": (torch.get_num_threads(),), "rounds": DEFAULT_ROUNDS}
    chosen |= PRESETS.get(options.preset, {})
    for name in ("models", "sizes", "batches", "dtypes", "threads"):
        if getattr(options, name) is not None:
            chosen[name] = tuple(getattr(options, name))
    for name in ("mode", "rounds", "device", "note"):
        if getattr(options, name) is not None:
            chosen[name] = getattr(options, name)
    return Settings(**chosen, memory=not options.no_memory)


def _measure(options: argparse.Namespace) -> int:
    from vision_ssm.bench import run_benchmark
    from vision_ssm.storage import require_writable

    settings = settings_of(options)
    if options.plots and len(settings.sizes) < 2:
        raise ConfigError("--plots draws against resolution: give two sizes or more (--img-size)")
    if options.output:
        require_writable(options.output.parent)

    display = _Display(shown=not options.json)

    def finished(report: Report, group: list[Measured]) -> None:
        if options.output:
            report.save(options.output)
        display.print_new(report)

    with display:
        report = run_benchmark(settings, on_group=finished, on_step=display.step)
        if options.output and report.measured:
            report.save(options.output)
        display.print_new(report)  # what an interrupted group has measured
    found = report.to_dict()
    if options.json:
        print_json(found)
    _conclude(found, options, options.output)
    if report.interrupted:
        complain("interrupted; what was measured until then is marked as incomplete.")
        return INTERRUPTED
    return SOME_FAILED if any(row["error"] for row in found["rows"]) else 0


class _Display:
    """A progress bar, on a terminal only, that makes way for each table."""

    def __init__(self, *, shown: bool) -> None:
        from rich.progress import Progress

        out = console(stderr=True)
        self._shown, self._printed = shown, 0
        # Tables go to standard output, which may be a file: the bar must not redirect it. Nor may it be drawn by a
        # thread of its own, which would compete with what is timed.
        off = not (shown and out.is_terminal)
        self._bar = Progress(console=out, transient=True, redirect_stdout=False, auto_refresh=False, disable=off)
        self._task = self._bar.add_task("measuring", total=None)

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total, refresh=True)

    def print_new(self, report: Report) -> None:
        """Print the rows that have come since the last time."""
        rows = report.to_dict()["rows"][self._printed :]
        if self._shown and rows:
            self._bar.stop()
            _print_group(rows)
            self._bar.start()
        self._printed += len(rows)


def _show(options: argparse.Namespace) -> int:
    from vision_ssm.bench import read_report
    from vision_ssm.bench.report import group_rows

    found = read_report(options.show)
    if options.json:
        print_json(found)
    else:
        for rows in group_rows(found["rows"], "height", "width", "batch", "dtype", "threads").values():
            _print_group(rows)
    _conclude(found, options, options.show)
    return 0


def _conclude(found: dict[str, Any], options: argparse.Namespace, beside: Path | None) -> None:
    """Print what needs all groups, and draw the plots."""
    if found["slopes"] and not options.json:
        print_table(
            "Growth of time with pixels (1: linear)",
            ("model", "batch", "dtype", "threads", "sizes", "log-log slope"),
            [
                (s["model"], str(s["batch"]), s["dtype"], str(s["threads"]), str(s["sizes"]), f"{s['slope']:.2f}")
                for s in found["slopes"]
            ],
            numeric=("batch", "threads", "sizes", "log-log slope"),
        )
    if not (options.plots and beside and found["rows"]):
        return
    from vision_ssm.bench import draw_memory, draw_speed

    drawn = [(draw_speed, beside.with_name(f"{beside.stem}_speed.png"))]
    if any((row["memory"] or {}).get("peak_bytes") for row in found["rows"]):
        drawn.append((draw_memory, beside.with_name(f"{beside.stem}_memory.png")))
    for draw, path in drawn:
        draw(found, path)
        if not options.json:
            say(f"drew {path}")


def _print_group(rows: Sequence[dict[str, Any]]) -> None:
    head = rows[0]
    title = (
        f"{head['mode']}, {head['height']} x {head['width']}, batch {head['batch']}, {head['dtype']}, "
        f"{head['threads']} thread{'s' if head['threads'] > 1 else ''}, {head['device']}"
    )
    numeric = ("median", "quartiles", "images/s", "time / first", "multiply-adds", "of ceiling", "peak", "peak / first")
    print_table(title, ("model", *numeric), [_cells(row) for row in rows], numeric=numeric)
    for row in rows:
        missing = row["error"] or (row["memory"] or {}).get("unmeasured")
        if missing:
            say(f"{row['model']}: {missing}")
        for doubt in row.get("doubts", ()):  # files of before have none
            say(f"{row['model']}: {doubt}.")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    seconds = row["seconds"]
    return (
        row["model"],
        f"{1e3 * seconds['median']:.2f} ms" if seconds else "failed",
        f"{1e3 * seconds['lower_quartile']:.2f} to {1e3 * seconds['upper_quartile']:.2f}" if seconds else "-",
        f"{row['images_per_second']:.4g}" if seconds else "-",
        _ratio(row["time_ratio"]),
        amount(row["macs_all"]),
        percent(row["share_of_ceiling"]) if row["share_of_ceiling"] else "-",
        _peak(row["memory"] or {}),
        _ratio(row["memory_ratio"]),
    )


def _peak(found: dict[str, Any]) -> str:
    """The median of several processes with the least and the most of them."""
    text = memory(found.get("peak_bytes"))
    if found.get("processes", 1) == 1:
        return text
    return f"{text} ({memory(found['peak_least'])} to {memory(found['peak_most'])})"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
