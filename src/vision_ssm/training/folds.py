"""Cross-validation: the same run once for each fold of the data, and what the scores come to."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_ssm.errors import ConfigError
from vision_ssm.storage import whole_file
from vision_ssm.tasks.scores import Score
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.events import Listener, TrainResult
from vision_ssm.training.run import train

__all__ = ["FoldsResult", "train_folds"]


@dataclass(frozen=True)
class FoldsResult:
    """What the runs of the folds left behind.

    Attributes:
        runs: the results of the folds, in their order; fewer than there are folds after an interruption.
        mean: of each score over the folds' best weights; empty after an interruption.
        deviation: of each score, that of a sample (over n - 1).
        file: where this is written, ``NAME-folds.json`` beside the runs' folders; None after an interruption.
        named: how the scores are called and read, the primary one first.
        interrupted: None, or the signal that ended the last run early.
    """

    runs: tuple[TrainResult, ...]
    mean: dict[str, float]
    deviation: dict[str, float]
    file: Path | None
    named: tuple[Score, ...]
    interrupted: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        runs = [
            {
                "folder": str(run.folder),
                "best_weights": None if run.best_weights is None else str(run.best_weights),
                "best_scores": _plain(run.best_scores),
                "best_epoch": run.best_epoch,
            }
            for run in self.runs
        ]
        scores = {"mean": _plain(self.mean), "deviation": _plain(self.deviation)}
        return {"runs": runs, **scores, "interrupted": self.interrupted}


def train_folds(config: TrainConfig, *, on_event: Listener | None = None) -> FoldsResult:
    """Train once for each fold, holding it out, and take mean and deviation of the scores.

    The runs are called ``NAME-fold0`` and so on. With ``run.resume`` (the folder ``output/NAME``, which need not exist)
    each that was begun goes on, and one that is complete is left as it is.

    Each score is that of the epoch whose weights were best on the fold itself, so it is a little better than the same
    weights would do on images that were not asked.

    Args:
        config: with ``data.folds`` and without ``data.fold``.
        on_event: as of `vision_ssm.training.train`; each run tells its own events.

    Raises:
        ConfigError: no folds are asked for, or one; else as `vision_ssm.training.train`.
    """
    folds = config.data.folds
    if folds is None or config.data.fold is not None:
        raise ConfigError(
            f"train_folds takes a run with data.folds and without data.fold, got {folds} and {config.data.fold}."
        )
    base = config.run_folder
    runs: list[TrainResult] = []
    with Processes.join(
        config.run.device, config.run.timeout
    ) as processes:  # once for all: the runs find the group that is there
        for fold in range(folds):
            folder = base.with_name(f"{base.name}-fold{fold}")
            resume = str(folder) if config.run.resume and (folder / "config.yaml").exists() else None
            own = {"data.fold": fold, "run.output": str(base.parent), "run.name": base.name, "run.resume": resume}
            result = train(config.replace(**own), on_event=on_event)
            runs.append(result)
            if result.interrupted:
                return FoldsResult(tuple(runs), {}, {}, None, result.named, result.interrupted)
        is_main = processes.is_main
    values = {score.name: [run.best_scores.get(score.name, math.nan) for run in runs] for score in runs[0].named}
    file = base.with_name(f"{base.name}-folds.json")
    found = FoldsResult(
        tuple(runs),
        {name: statistics.fmean(each) for name, each in values.items()},
        {name: _deviation(each) for name, each in values.items()},
        file,
        runs[0].named,
    )
    if is_main:
        with whole_file(file) as part:
            part.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    return found


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}
