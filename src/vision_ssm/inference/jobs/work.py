"""What is done with a piece of a job: from the images that it refers to, to the content of its parquet file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from vision_ssm.errors import ConfigError
from vision_ssm.inference.features import features
from vision_ssm.inference.jobs.plan import Piece
from vision_ssm.inference.jobs.references import opened, parquet
from vision_ssm.inference.predict import predict
from vision_ssm.tasks.registry import find_task
from vision_ssm.weights.files import Loaded, require_command
from vision_ssm.weights.opening import open_model
from vision_ssm.weights.shipped import shipped_weights

__all__ = ["Bench", "Command", "Work", "located", "name_and_digest", "plain_options", "schema_of"]

Command = Literal["predict", "features"]

_RUNNING = ("batch_size", "download")
"""Options that change nothing but speed and rounding: a job may go on with others."""

_BATCHES, _BATCH = 4, 16  # so many at a time, and the size of those that predictions and features make by themselves


@dataclass(frozen=True)
class Work:
    """What a job does with its images, as it travels to the workers.

    Attributes:
        command: ``predict`` for what the task finds, ``features`` for vectors.
        weights: what `located` returns; None for those that ship with the package.
        model: registered name of the model that a checkpoint belongs to.
        options: of `vision_ssm.predict` or `vision_ssm.features`.
    """

    command: Command
    weights: str | None = None
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self, device: str | None = None) -> Bench:
        """Open the model where the work is to be done, on a device, see `vision_ssm.device.choose_device`.

        Raises:
            CheckpointError, ConfigError: as `vision_ssm.load_model`, or the task makes no tables.
        """
        return Bench(self, open_model(self.weights, model=self.model, device=device))


class Bench:
    """An opened model and what is done with it.

    Attributes:
        loaded: the model.
        columns: of the tables: name -> type, see `vision_ssm.tasks.registry.TaskInfo`.
    """

    def __init__(self, work: Work, loaded: Loaded) -> None:
        if work.command not in (known := _COMMANDS):
            raise ConfigError(f"a job is one of {', '.join(known)}, got {work.command!r}.")
        require_command(loaded.info, work.command)
        self._work, self.loaded = work, loaded
        own = find_task(loaded.info.task).columns if work.command == "predict" else {"embedding": [float]}
        if not own:
            raise ConfigError(f"predictions of the task {loaded.info.task} are not written as tables.")
        self.columns: dict[str, Any] = {"path": str, "error": str, **own}

    def about(self) -> dict[str, Any]:
        """Say what is done, as plain JSON values: as long as these are the same, so are the rows."""
        weights = name_and_digest(self.loaded.info.source)
        told = plain_options(self._work.options)
        return {"command": self._work.command, "weights": weights, "model": self._work.model, **told}

    def content(self, piece: Piece) -> bytes:
        """Return the content of the parquet file of a piece: a row for each image, in order.

        ``path`` says which image, ``error`` why it could not be used; then the other columns are null.
        """
        import pyarrow as pa

        options, images = self._work.options, opened(piece.references)
        found: dict[str, Any] = {}
        errors: dict[str, str] = {}
        # Results may be maps of whole images, which are not to be in memory for all of a shard. The batches are those
        # of all images at once.
        step = _BATCHES * int(options.get("batch_size", _BATCH))
        for start in range(0, len(images), step):
            some, reasons = _COMMANDS[self._work.command](self.loaded, images[start : start + step], options)
            found, errors = found | some, errors | reasons
        table = pa.Table.from_pylist(
            [
                {"path": _text(reference.name), "error": errors.get(named.name), **found.get(named.name, {})}
                for reference, named in zip(piece.references, images, strict=True)
            ],
            schema=schema_of(self.columns),
        )
        content = io.BytesIO()
        parquet().write_table(table, content, compression="zstd")
        return content.getvalue()


def _predict(loaded: Loaded, images: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    found = predict(loaded, images, **options)
    return {one.path: one.result.cells() for one in found.results}, {one.path: one.reason for one in found.failures}


def _features(loaded: Loaded, images: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    found = features(loaded, images, **options)
    rows = {one.path: {"embedding": one.embedding} for one in found.results}
    return rows, {one.path: one.reason for one in found.failures}


_COMMANDS: dict[str, Callable[[Loaded, Any, Mapping[str, Any]], tuple[dict[str, Any], dict[str, str]]]] = {
    "predict": _predict,
    "features": _features,
}


def schema_of(columns: Mapping[str, Any]) -> Any:
    """Return the schema of a table of such columns, see `vision_ssm.tasks.registry.TaskInfo`; floats have 32 bits."""
    import pyarrow as pa

    return pa.schema([(name, _arrow(kind)) for name, kind in columns.items()])


def _arrow(kind: Any) -> Any:
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow(kind[0]))
    if isinstance(kind, dict):
        return pa.struct([(name, _arrow(inner)) for name, inner in kind.items()])
    return {str: pa.string(), int: pa.int64(), float: pa.float32()}[kind]


def _text(name: str) -> str:
    # File names need not be valid text.
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def located(weights: str | Path, model: str | None) -> str:
    """Return weights as workers find them whatever folder they are started in: a file by its whole path, or a name.

    Args:
        weights: as they were named; where they are neither a file nor a folder they are a name.
        model: that they belong to; without one, names of shipped weights go before files.
    """
    is_name = not os.path.exists(weights) or (model is None and str(weights) in shipped_weights())
    return str(weights) if is_name else os.path.abspath(weights)


def name_and_digest(weights: str) -> str:
    """Return the name of a weights file with a digest of its content; any other name as it is."""
    source = Path(weights)
    if not source.is_file():
        return source.name
    with source.open("rb") as file:
        digest = blake2b(digest_size=16)
        while block := file.read(2**22):
            digest.update(block)
    return f"{source.name} {digest.hexdigest()}"


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that change what is found, as they come back from JSON."""
    kept = {name: value for name, value in options.items() if name not in _RUNNING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
