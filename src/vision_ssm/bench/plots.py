"""Speed and memory against resolution as PNG files, one line per model."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_ssm.bench.report import group_rows
from vision_ssm.errors import ConfigError
from vision_ssm.plots import BLUE, GREY, INK, ORANGE, RED, png_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_memory", "draw_speed"]

COLOURS = (BLUE, ORANGE, RED, "#2c8a57", "#7b4fa3", "#6b5138", "#c2588f", GREY)
MARKERS = "osD^vPX*"
PANEL = (4.6, 3.9)  # inches
INSIDE = 5  # so many models are named inside the panels


def draw_speed(report: dict[str, Any], path: str | Path) -> None:
    """Draw images per second against resolution.

    Args:
        report: as `Report.to_dict` and `read_report` return it.
        path: the PNG file to write.

    Raises:
        ConfigError: nothing was timed at two sizes or more; DataError: the file cannot be written.
    """
    title = f"{report['settings']['mode'].capitalize()} speed, images per second"
    _draw(report, path, title, lambda row: row["images_per_second"])


def draw_memory(report: dict[str, Any], path: str | Path) -> None:
    """Draw peak memory beyond weights and input against resolution; arguments and errors as for `draw_speed`."""
    title = f"Peak memory of {report['settings']['mode']} beyond weights and input, MiB"
    _draw(report, path, title, _mebibytes)


def _mebibytes(row: dict[str, Any]) -> float | None:
    peak = (row["memory"] or {}).get("peak_bytes")
    return peak / 2**20 if peak else None


def _draw(
    report: dict[str, Any], path: str | Path, title: str, value: Callable[[dict[str, Any]], float | None]
) -> None:
    shown = [row for row in report["rows"] if value(row) is not None]
    if len({(row["height"], row["width"]) for row in shown}) < 2:
        raise ConfigError("a plot against resolution needs results at two sizes or more")
    panels = group_rows(shown, "dtype", "threads", "batch")
    models = report["settings"]["models"]
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    heading = textwrap.wrap(title, int(PANEL[0] * columns / 0.105))
    where = textwrap.wrap(_where(report), int(PANEL[0] * columns / 0.075))
    above = 0.2 * len(heading) + 0.16 * len(where)
    below = 0.17 * math.ceil(len(models) / columns) if len(models) > INSIDE else 0
    size = PANEL[0] * columns, PANEL[1] * lines + above + below
    with png_figure(path, size) as figure:
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - above / size[1]))  # type: ignore[union-attr,call-arg]
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
        figure.text(0.01, 1, "\n".join(heading), fontsize=12, fontweight="bold", va="top")
        figure.text(0.01, 1 - 0.22 * len(heading) / size[1], "\n".join(where), fontsize=8.5, color=GREY, va="top")
        for axes, ((dtype, threads, batch), rows) in zip(grid, panels.items(), strict=False):
            axes.set_title(f"{dtype}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
            for index, model in enumerate(models):
                points = sorted((_side(row), value(row)) for row in rows if row["model"] == model)
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        color=COLOURS[index % len(COLOURS)],
                        marker=MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
                        markersize=5,
                        linewidth=1.8,
                        label=model,
                    )
            _scales(axes, rows)
            axes.set_xlabel("image side, pixels")
            if len(models) <= INSIDE:
                axes.legend(fontsize=8)
        if len(models) > INSIDE:  # inside it would hide the lines
            lines_of = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
            figure.legend(lines_of.values(), lines_of.keys(), loc="outside lower left", ncols=columns, fontsize=8)
        for axes in list(grid):  # what is left of the last line
            axes.set_axis_off()


def _where(report: dict[str, Any]) -> str:
    """The machine, the day and the versions."""
    versions = report["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("vision-ssm", "torch") if versions.get(name))
    return f"{report['device']}; {report['circumstances']['started'][:10]}; {packages}"


def _side(row: dict[str, Any]) -> float:
    """Side of the square with as many pixels."""
    return math.sqrt(row["height"] * row["width"])


def _scales(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Logarithms on both axes, where a power law is a straight line; sizes and plain numbers as ticks."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = {_side(row): f"{row['height']}" if row["height"] == row["width"] else _cross(row) for row in rows}
    axes.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(sizes), [sizes[side] for side in sorted(sizes)], rotation=45 if len(sizes) > 5 else 0)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
    axes.tick_params(colors=INK)


def _cross(row: dict[str, Any]) -> str:
    return f"{row['height']}×{row['width']}"
