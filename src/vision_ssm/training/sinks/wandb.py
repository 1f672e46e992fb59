"""Weights & Biases: a run of the project ``vision-ssm``, or of the one that ``WANDB_PROJECT`` names.

Its own environment variables say the rest; ``WANDB_MODE=offline`` keeps everything in the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vision_ssm.training.sinks import Opening, Outcome, hyperparameters

__all__ = ["open_sink"]


def open_sink(run: Opening) -> WeightsAndBiases:
    """Begin a run there, or go on with the one of this identity."""
    import wandb

    return WeightsAndBiases(
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "vision-ssm",
            name=run.folder.name,
            dir=str(run.folder),
            config=hyperparameters(run.config),
            id=run.identity,
            resume=None if run.identity is None else "allow",
        )
    )


class WeightsAndBiases:
    """A `vision_ssm.training.sinks.Sink`."""

    identity: str | None

    def __init__(self, run: Any) -> None:
        self._run = run
        self.identity = run.id

    def record(self, values: Mapping[str, float], update: int, epoch: int) -> None:
        """All numbers of an update. What a resumed run makes again is the same, and dropped there as known."""
        self._run.log({**values, "train/epoch": epoch}, step=update)

    def close(self, outcome: Outcome) -> None:
        """End the run there; anything but a finished one is shown as failed."""
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
