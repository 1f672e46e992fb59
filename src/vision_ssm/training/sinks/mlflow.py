"""MLflow: a run of the experiment ``vision-ssm``, or of the one that ``MLFLOW_EXPERIMENT_NAME`` names.

``MLFLOW_TRACKING_URI`` says where; without it, MLflow's own default. The run is written by its identity and is never
the program's active run, so a program that has one keeps it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from vision_ssm.training.sinks import Opening, Outcome, hyperparameters

__all__ = ["open_sink"]

_PARAMETERS_AT_ONCE = 100  # more are refused by the server
_PARAMETER_LENGTH = 500  # that every version takes
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


def open_sink(run: Opening) -> MLflow:
    """Begin a run there, or go on with the one of this identity."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    if run.identity is not None:
        client.update_run(run.identity, status="RUNNING")
        return MLflow(client, run.identity)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "vision-ssm"
    experiment = client.get_experiment_by_name(name)
    place = client.create_experiment(name) if experiment is None else experiment.experiment_id
    identity: str = client.create_run(place, run_name=run.folder.name).info.run_id
    # Only at the beginning: a parameter may not change there, and --workers of a resumed run may.
    settings = [Param(key, str(value)[:_PARAMETER_LENGTH]) for key, value in hyperparameters(run.config).items()]
    for start in range(0, len(settings), _PARAMETERS_AT_ONCE):
        client.log_batch(identity, params=settings[start : start + _PARAMETERS_AT_ONCE])
    return MLflow(client, identity)


class MLflow:
    """A `vision_ssm.training.sinks.Sink`."""

    identity: str | None

    def __init__(self, client: Any, identity: str) -> None:
        self._client, self._run = client, identity
        self.identity = identity

    def record(self, values: Mapping[str, float], update: int, epoch: int) -> None:
        """All numbers of an update in one call."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = [Metric(name, value, now, update) for name, value in {**values, "train/epoch": float(epoch)}.items()]
        self._client.log_batch(self._run, metrics=points)

    def close(self, outcome: Outcome) -> None:
        """Say how the run has ended."""
        self._client.set_terminated(self._run, status=_STATUS[outcome])
