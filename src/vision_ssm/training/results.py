"""What a run leaves for its users: weights that know what they are, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from vision_ssm.errors import VisionSSMError
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.models.described import without_sources
from vision_ssm.training.assembly import Parts
from vision_ssm.training.curve import draw_curve
from vision_ssm.training.engine import Engine
from vision_ssm.training.log import write_table
from vision_ssm.training.run_folder import RunFolder
from vision_ssm.weights.files import WeightsInfo, save_weights

__all__ = ["write_pictures", "write_progress", "write_weights"]


def write_weights(
    path: Path, model: Mapping[str, Tensor], parts: Parts, scores: Mapping[str, float], epoch: int, kind: str
) -> None:
    """Write the state of a model with all that prediction needs. ``kind`` is "model" or "ema".

    Raises CheckpointError when it cannot be written; a file of before stays.
    """
    data = parts.config.data
    info = WeightsInfo(
        model=parts.config.model.name,
        model_options=without_sources(parts.model_options),
        task=parts.task.name,
        record=parts.task.record(),
        preprocessing=parts.preprocessing,
        metrics={**scores, "epoch": epoch, "weights": kind},
        version=version("vision-ssm"),
        val_fraction=data.val_fraction,
        trained_on=parts.trained_on,
        fold=None if data.fold is None or data.folds is None else (data.fold, data.folds),
    )
    save_weights(path, model, info=info)


def write_progress(folder: RunFolder) -> str | None:
    """Write ``curve.png`` and ``log.csv`` from the log as it is now; returns what went wrong, if anything."""
    try:
        draw_curve(folder.log, folder.path / "curve.png")
        write_table(folder.log, folder.path / "log.csv")
    except VisionSSMError as error:
        return str(error)
    return None


def write_pictures(folder: RunFolder, engine: Engine) -> str | None:
    """Write curve and table of the run, and the pictures of its best weights (else the last) as they are on disk.

    Returns what went wrong, if anything: a run with good weights is not failed by a picture, and a damaged log does not
    cost the pictures of the weights.
    """
    parts, config = engine.parts, engine.config
    problems = list(filter(None, [write_progress(folder)]))
    try:
        evaluation = evaluate(
            folder.best_weights if engine.progress.best_epoch else folder.last_weights,  # no score was a number
            parts.val.dataset,
            batch_size=parts.val.batch_size,
            device=engine.processes.device,
            amp=config.run.amp,
            workers=config.data.workers,
            on_progress=lambda done, total: engine.processes.at(f"the pictures, {done} of {total} scored for them"),
            **parts.task.pictured,
        )
        parts.task.pictures(evaluation.meter, parts.val.dataset, folder.path, title=config.model.name)
    except VisionSSMError as error:
        problems.append(str(error))
    return f"Pictures could not be drawn: {' '.join(problems)}" if problems else None
