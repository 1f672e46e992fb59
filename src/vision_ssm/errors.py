"""The exceptions this library raises on purpose, its one kind of notice, and the spelling help of their messages."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NotFetchedError",
    "ProcessError",
    "ShapeError",
    "TrainingDiverged",
    "UnreadableError",
    "VisionSSMError",
    "VisionSSMNotice",
    "notify",
    "suggestion",
]


class VisionSSMError(Exception):
    """Base of every error whose message is meant for the person who runs the library.

    ``is_shared``: every process of a run raises it, so that one of them may tell.
    """

    is_shared: bool = False


class ShapeError(VisionSSMError, ValueError):
    """A tensor has the wrong shape or dtype."""


class ConfigError(VisionSSMError, ValueError):
    """An option is unknown, of the wrong type, out of range, or contradicts another one."""


class BackendError(VisionSSMError, RuntimeError):
    """A scan backend was asked for by name and cannot run this call."""


class CheckpointError(VisionSSMError, RuntimeError):
    """A weights or checkpoint file cannot be read, is not what it claims, or does not fit the model."""


class NotFetchedError(CheckpointError):
    """A published file is not on this machine and could not be fetched.

    Attributes:
        reason: what could not be got, from where, and why.
        file: its name; PATH where that is on no record.
        folder: where it would be found if it were put there; empty where there is no such folder.
        model: that it belongs to, where that is known.
    """

    def __init__(self, reason: str, *, file: str, folder: str = "", model: str = "") -> None:
        self.reason, self.file, self.folder, self.model = reason, file, folder, model
        super().__init__(
            self.with_words(
                f"give its path: pretrained_cfg_overlay=dict(file={file!r}) to timm, model.checkpoint to training, or "
                f"weights={file!r} with model={model or 'NAME'!r}"
            )
        )

    def with_words(self, instead: str) -> str:
        """Return the message with what to do, once the file is here, in the words of whoever was asked."""
        place = f"put it into {self.folder}, or " if self.folder else ""
        return f"{self.reason} Download the file where there is a network and {place}{instead}."


class DataError(VisionSSMError, ValueError):
    """An image, a folder of images or a data set cannot be used."""


class UnreadableError(DataError):
    """One sample of a data set cannot be read; the others may be."""


class TrainingDiverged(VisionSSMError, ArithmeticError):
    """The loss or its gradient is no longer a finite number.

    Attributes:
        epoch: counted from 1.
        update: the update that was not made, counted from 1 over the whole run.
        learning_rate: it would have used.
        files: images of the offending batch.
    """

    def __init__(self, message: str, *, epoch: int, update: int, learning_rate: float, files: list[str]) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.update = update
        self.learning_rate = learning_rate
        self.files = files


class ProcessError(VisionSSMError, RuntimeError):
    """Processes of a run cannot go on together; the message names them by rank, with the reason of each.

    Attributes:
        same: all of them have the same reason.
    """

    def __init__(
        self, reasons: Mapping[int, str], world: int, *, advice: str | None = None, is_shared: bool = True
    ) -> None:
        ranks: dict[str, list[int]] = {}
        for rank, reason in reasons.items():
            ranks.setdefault(reason, []).append(rank)
        self.same = len(ranks) == 1 and len(reasons) == world
        self.is_shared = is_shared
        told = [
            f"{'rank' if len(those) == 1 else 'ranks'} {', '.join(map(str, those))} of {world}: {reason}"
            for reason, those in ranks.items()
        ]
        super().__init__(" ".join([*told, *([advice] if advice else [])]))


class VisionSSMNotice(UserWarning):
    """What is worth knowing and stops nothing, such as a slower path. The command prints it as a note."""


def notify(message: str) -> None:
    """Tell by a `VisionSSMNotice`, at the line outside this package that led here, what is worth knowing."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "vision_ssm":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, VisionSSMNotice, stacklevel=level)


def suggestion(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the option nearest to ``name``, or ``""`` when none is near."""
    near = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
