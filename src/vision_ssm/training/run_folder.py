"""The folder of a run: which files it has, and when it may be used."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from vision_ssm.errors import ConfigError, DataError
from vision_ssm.storage import require_writable, what_else, whole_file
from vision_ssm.tasks.registry import find_task
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import Event
from vision_ssm.training.state import LAST, NEXT, PREVIOUS, remove

__all__ = ["RunFolder"]

_LEFT_BY_A_RUN = (
    "config.yaml",
    "log.jsonl",
    LAST,
    PREVIOUS,
    NEXT,
    "best.safetensors",
    "last.safetensors",
    "curve.png",
    "log.csv",
    "skipped.json",
    "tracking.json",
)


class RunFolder:
    """``config.yaml``, ``log.jsonl``, ``last.ckpt``, ``best.safetensors``, ``last.safetensors`` and the pictures.

    Making one only looks: without ``run.resume`` the folder must be unused, with it there must be a run.

    Raises:
        ConfigError: the folder is in use, or there is nothing to resume.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.path = config.run_folder
        self._resuming = bool(config.run.resume)
        left = (*_LEFT_BY_A_RUN, *find_task(config.task).pictures)
        self._used = [name for name in left if (self.path / name).exists()]
        if self._resuming and "config.yaml" not in self._used:
            raise ConfigError(f"nothing to resume: {self.path} holds no run (no config.yaml).")
        if self._used and not self._resuming and not config.run.overwrite:
            raise ConfigError(
                f"{self.path} already holds a run ({self._used[0]}). Continue it with --resume, give this one another "
                "name (--name, run.name), or replace it (--overwrite, run.overwrite)."
            )
        for name in self._used:
            if self._resuming and (other := what_else(self.path / name)):
                raise ConfigError(f"cannot resume: {self.path / name} is {other}, not a file of a run.")

    def start(self, config: TrainConfig, log_bytes: int) -> None:
        """Clear what is in the way and write the effective configuration.

        Only now is there a folder: a run that cannot find its data leaves none behind, least of all among the data.
        Of the log the first ``log_bytes`` are kept: a resumed run logs again what came after its checkpoint.

        Raises:
            DataError: the folder cannot be written.
        """
        require_writable(self.path)
        try:
            for name in self._used if not self._resuming else []:
                remove(self.path / name)
            for pattern in (".*.part", ".writable.*"):  # of processes that were killed
                for leftover in self.path.glob(pattern):
                    remove(leftover)
            if self.log_bytes > log_bytes:
                os.truncate(self.log, log_bytes)
        except OSError as error:
            raise DataError(f"cannot clear {error.filename or self.path}: {error.strerror or error}.") from error
        with whole_file(self.path / "config.yaml") as part:
            part.write_text(config.to_yaml(), encoding="utf-8")

    @property
    def best_weights(self) -> Path:
        """The weights with the best score so far."""
        return self.path / "best.safetensors"

    @property
    def last_weights(self) -> Path:
        """The weights after the last epoch."""
        return self.path / "last.safetensors"

    @property
    def log(self) -> Path:
        """One JSON object per event."""
        return self.path / "log.jsonl"

    @property
    def log_bytes(self) -> int:
        """Length of the log; a checkpoint remembers it."""
        return self.log.stat().st_size if self.log.exists() else 0

    def record(self, event: Event) -> None:
        """Append an event to the log. Raises DataError when that fails."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **event.to_dict()}, ensure_ascii=False)
        try:
            # File names need not be valid text; the escapes are those of JSON.
            with self.log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            raise DataError(f"cannot write to {self.log}: {error.strerror}.") from error
