"""The training curve of a run as a PNG file, from its log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision_ssm.errors import DataError
from vision_ssm.plots import BLUE, GREY, INK, ORANGE, RED, png_figure, shortened
from vision_ssm.tasks.scores import Score
from vision_ssm.training.log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curve"]

COLOURS = ("#2c8a57", "#7b4fa3", "#6b5138", "#c2588f", "#3d8f9c", RED)  # of the parts of a sum of losses


def draw_curve(log: str | Path, path: str | Path) -> None:
    """Draw losses, the primary score on the held-out images and the learning rate over the epochs of a run.

    Where a task has several losses, each is drawn beside their sum; a score called ``loss`` joins them.

    Args:
        log: the run's log.jsonl (events ``run_started``, ``step_done`` and ``epoch_done``). After a resume the later
            line counts.
        path: the PNG file to write.

    Raises:
        DataError: the log cannot be read or has no step yet, or the picture cannot be written.
    """
    found = read_log(Path(log))
    primary, steps, epochs, about = found.scores[0], found.steps, found.epochs, _about(found.started)
    if not steps:
        raise DataError(f"log {str(log)!r} holds no training step yet, so there is no curve to draw.")
    # Steps carry their update number over the whole run; finished epochs tell how many updates make one.
    per_epoch = epochs[-1]["update"] / epochs[-1]["epoch"] if epochs else steps[-1]["update"] / steps[-1]["epoch"]
    at = [step["update"] / per_epoch for step in steps]
    done = [epoch["epoch"] for epoch in epochs]
    with png_figure(path, (11.0, 3.9 if about else 3.6)) as figure:
        if about:
            figure.suptitle(about, fontsize=12, fontweight="bold", x=0.01, ha="left")
        loss, score, rate = figure.subplots(1, 3, width_ratios=(5, 5, 3.2))
        _plot_losses(loss, at, steps, epochs)
        factor = 100 if primary.unit == "%" else 1
        _plot_scores(score, epochs, "scores", primary.name, factor, color=ORANGE, label="weights")
        _plot_scores(score, epochs, "ema_scores", primary.name, factor, color=BLUE, label="their moving average")
        _mark_best(score, epochs, primary, factor)
        score.set_title(f"Held-out {primary.title}{f' ({primary.unit})' if primary.unit else ''}")
        rates = np.array([step["learning_rate"] for step in steps])
        power = math.floor(math.log10(1.05 * rates.max())) if rates.max() > 0 else 0
        rate.plot(at, rates / 10.0**power, color=INK, linewidth=1.4)
        rate.set_ylim(bottom=0)
        rate.set_title(f"Learning rate (1e{power})")
        for axes in (loss, score, rate):
            axes.set_xlabel("epoch")
            axes.set_xlim(0, 1.015 * max(at[-1], *done, 1e-9))
            axes.xaxis.get_major_locator().set_params(integer=at[-1] >= 2)
            if len(axes.get_legend_handles_labels()[0]) > 1:
                axes.legend(loc="best")
        if not score.lines:
            score.text(0.5, 0.5, "not evaluated yet", transform=score.transAxes, ha="center", color=GREY)


def _plot_losses(
    axes: Axes, at: Sequence[float], steps: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]]
) -> None:
    done = [epoch["epoch"] for epoch in epochs]
    losses = [step["loss"] for step in steps]
    axes.plot(at, losses, color=BLUE, linewidth=0.8, alpha=0.4 if done else 1, label="single updates")
    axes.plot(done, [epoch["train_loss"] for epoch in epochs], color=BLUE, **_marked(done), label="their mean")
    parts = steps[-1].get("losses") or {}
    for name, colour in zip(parts if len(parts) > 1 else (), COLOURS, strict=False):
        values = [(step.get("losses") or {}).get(name, math.nan) for step in steps]
        axes.plot(at, values, color=colour, linewidth=0.7, alpha=0.7, label=name)
    _plot_scores(axes, epochs, "scores", "loss", 1, color=ORANGE, label="held-out")
    axes.set_title("Loss")
    # The first steps of a run would otherwise flatten everything after them.
    finite = [value for value in losses if value is not None and math.isfinite(value)]
    if finite:
        axes.set_ylim(0, 1.15 * float(np.quantile(finite, 0.98)))


def _about(event: dict[str, Any]) -> str:
    """Run, model and how many images there are; empty in a log from before runs said it."""
    kinds = {"folder": str, "model": str, "train_images": int, "val_images": int}
    if not all(isinstance(event.get(name), kind) for name, kind in kinds.items()):
        return ""
    run = Path(event["folder"]).name
    name = shortened(f"{run}: {event['model']}" if event["model"] not in run else run, 70)
    return f"{name}, {event['train_images']:,} images to learn from, {event['val_images']:,} held out"


def _plot_scores(
    axes: Axes, epochs: Sequence[dict[str, Any]], which: str, name: str, factor: float, **look: Any
) -> None:
    points = [
        (epoch["epoch"], factor * epoch[which][name])
        for epoch in epochs
        if (epoch.get(which) or {}).get(name) is not None
    ]
    if points:
        at, values = zip(*points, strict=True)
        axes.plot(at, values, **_marked(at), **look)


def _mark_best(axes: Axes, epochs: Sequence[dict[str, Any]], primary: Score, factor: float) -> None:
    best, at = None, 0
    for epoch in epochs:
        for which in ("scores", "ema_scores"):
            value = (epoch.get(which) or {}).get(primary.name)
            if value is not None and primary.is_better(value, best):
                best, at = value, epoch["epoch"]
    if best is None:
        return
    height = factor * best
    axes.axhline(height, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.annotate(
        f"best {height:.{1 if factor == 100 else 4}{'f' if factor == 100 else 'g'}} in epoch {at}", (0.98, height),
        xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8.5,
        color=INK,
    )  # fmt: skip
    if factor == 100:  # the same axis for every run: on one of its own three points more would look like a triumph
        axes.set_ylim(0, 101)
        return
    lowest, highest = axes.get_ylim()
    axes.set_ylim(max(lowest, 0) if best >= 0 else lowest, highest + 0.1 * (highest - lowest))


def _marked(points: Sequence[float]) -> dict[str, Any]:
    """Line style: single points are visible as markers while they are few."""
    return {"linewidth": 1.8, "marker": "o" if len(points) <= 40 else None, "markersize": 3.5}
