"""What the settings of every task have in common. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge
from pydantic import Field, model_validator

from vision_ssm.data.splits import VAL_FRACTION
from vision_ssm.errors import ConfigError
from vision_ssm.settings import Count, Natural, OpenFraction, Section, setting

__all__ = ["DataSettings", "TaskSettings"]


class DataSettings(Section):
    """Which data, and how they are read: what training and evaluation need of any task."""

    path: str = setting("", "The data: a folder, or a name that the task knows.", free=True)
    val_fraction: OpenFraction = setting(
        VAL_FRACTION, "Share of the images held out where the data have no such part of their own."
    )
    download: bool = setting(False, "Allow a named data set to be downloaded.", free=True)
    skip_unreadable: bool = setting(
        False, "Train without the images that cannot be read, found by reading all of them once; false ends the run."
    )
    folds: Annotated[int, Ge(2)] | None = setting(
        None, "Cut the data into so many parts and hold out each in turn, in a run of its own; `fold` says which."
    )
    fold: Natural | None = setting(None, "Which fold this run holds out, counted from 0; null runs all of them.")
    batch_size: Count | Literal["auto"] = setting(
        64, "Images per step and process; auto finds what fits into memory before training."
    )
    eval_batch_size: Count | None = setting(None, "Images per evaluation step; null takes batch_size.", free=True)
    workers: Natural = setting(
        2, "Processes that read and augment images; the result does not depend on it.", free=True
    )

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> Self:
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            of = f"below data.folds, {self.folds}" if self.folds else "left null without data.folds"
            raise ConfigError(f"data.fold must be {of}, got {self.fold}.")
        return self


class TaskSettings(Section):
    """The sections of a run's configuration that belong to its task. A task adds its own, and checks across them.

    They stand beside the general sections (model, optim, schedule, ema, run), whose names are taken.
    """

    data: DataSettings = Field(default_factory=DataSettings)
