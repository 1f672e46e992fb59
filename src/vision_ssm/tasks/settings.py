"""What the settings of every task have in common. No torch here."""

from __future__ import annotations

from pydantic import Field

from vision_ssm.data.splits import VAL_FRACTION
from vision_ssm.settings import Count, Natural, OpenFraction, Section, setting

__all__ = ["DataSettings", "TaskSettings"]


class DataSettings(Section):
    """Which data, and how they are read: what training and evaluation need of any task."""

    path: str = setting("", "The data: a folder, or a name that the task knows.", free=True)
    val_fraction: OpenFraction = setting(
        VAL_FRACTION, "Share of the images held out where the data have no such part of their own."
    )
    download: bool = setting(False, "Allow a named data set to be downloaded.", free=True)
    batch_size: Count = setting(64, "Images per step and process.")
    eval_batch_size: Count | None = setting(None, "Images per evaluation step; null takes batch_size.", free=True)
    workers: Natural = setting(
        2, "Processes that read and augment images; the result does not depend on it.", free=True
    )


class TaskSettings(Section):
    """The sections of a run's configuration that belong to its task. A task adds its own, and checks across them.

    They stand beside the general sections (model, optim, schedule, ema, run), whose names are taken.
    """

    data: DataSettings = Field(default_factory=DataSettings)
