"""TensorBoard: files of events in ``tensorboard/`` of the run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from vision_ssm.training.sinks import Opening, Outcome, hyperparameters

__all__ = ["open_sink"]


def open_sink(run: Opening) -> TensorBoard:
    """Open the run's events; after a resume, those that came after its checkpoint are shown no more."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    place = run.folder / "tensorboard"
    if run.resumed_at is None and place.exists():  # of a run that this one replaces
        shutil.rmtree(place)
    writer: Any = SummaryWriter(str(place), purge_step=None if run.resumed_at is None else run.resumed_at + 1)
    settings = {key: _plain(value) for key, value in hyperparameters(run.config).items()}
    # What SummaryWriter.add_hparams writes, without the folder it would make for it: the values are those of the run.
    for summary in hparams(settings, {run.primary: 0.0}):  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(summary)
    return TensorBoard(writer)


def _plain(value: Any) -> str | bool | int | float:
    return value if isinstance(value, str | bool | int | float) else str(value)


class TensorBoard:
    """A `vision_ssm.training.sinks.Sink`."""

    identity: str | None = None

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def record(self, values: Mapping[str, float], update: int, epoch: int) -> None:
        """One point per number, at its update."""
        for name, value in {**values, "train/epoch": epoch}.items():
            self._writer.add_scalar(name, value, update)

    def close(self, outcome: Outcome) -> None:
        """Write the last points."""
        self._writer.close()
