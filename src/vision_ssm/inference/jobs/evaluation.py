"""Scores on very many images, by many workers: each scores a piece of the data, and the pieces are put together.

The file of a piece is what a meter has collected of it. Counts add up, and what a meter keeps per image goes by the
image's position among all; so the scores are those of one process, sums of losses within rounding.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vision_ssm.checkpoints.pickles import read_pickle
from vision_ssm.data.places import is_remote
from vision_ssm.data.shards import is_packed
from vision_ssm.errors import CheckpointError, DataError
from vision_ssm.inference.evaluate import Evaluation, evaluation
from vision_ssm.inference.jobs.job import SHARD_ROWS, Engine, do_pieces
from vision_ssm.inference.jobs.plan import Piece, plan_of
from vision_ssm.inference.jobs.references import Reference
from vision_ssm.inference.jobs.work import located, name_and_digest, plain_options
from vision_ssm.inference.scoring import Scoring, open_scoring
from vision_ssm.storage import require_writable
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.opening import open_model

__all__ = ["ScoreBench", "ScoreWork", "evaluate_in_shards"]

_SUFFIX = ".scores"


@dataclass(frozen=True)
class ScoreWork:
    """What is scored, as it travels to the workers.

    Attributes:
        weights: see `vision_ssm.inference.jobs.work.located`.
        model: registered name of the model that a checkpoint belongs to.
        data: whole path, address or name, the same for all workers.
        split: see `vision_ssm.evaluate`.
        options: of `vision_ssm.inference.scoring.open_scoring`.
    """

    weights: str
    model: str | None
    data: str
    split: str | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self, device: str | None = None) -> ScoreBench:
        """Open model and data where the work is to be done.

        Raises:
            CheckpointError, ConfigError, DataError: as `vision_ssm.evaluate`.
        """
        loaded = open_model(self.weights, model=self.model, device=device)
        return ScoreBench(self, open_scoring(loaded, self.data, self.split, **self.options))


class ScoreBench:
    """Opened model and data.

    Attributes:
        scoring: these.
    """

    def __init__(self, work: ScoreWork, scoring: Scoring) -> None:
        self._work, self.scoring = work, scoring
        self._places = tuple(str(path) for path in scoring.samples.paths)

    def references(self) -> list[Reference]:
        """Return the samples in order, each with its position."""
        kinds: list[Literal["address", "file"]] = ["address" if is_remote(place) else "file" for place in self._places]
        pairs = zip(self._places, kinds, strict=True)
        return [Reference(place, kind, place, position) for position, (place, kind) in enumerate(pairs)]

    def about(self) -> dict[str, Any]:
        """Say what is done, as plain JSON values: as long as these are the same, so are the scores."""
        told = {"command": "evaluate", "weights": name_and_digest(self.scoring.loaded.info.source)}
        data = {"data": self.scoring.samples.fingerprint, "split": self.scoring.split}
        return {**told, "model": self._work.model, **data, **plain_options(self._work.options)}

    def content(self, piece: Piece) -> bytes:
        """Return what a meter has collected of a piece.

        Raises:
            DataError: a sample cannot be read; the data are not those of whoever made the piece.
        """
        first, last = piece.references[0], piece.references[-1]
        if last.offset >= len(self._places) or not _ends_so(self._places[last.offset], last.name):
            raise DataError(
                f"{self._work.data!r} is not the same for all workers: image {last.offset:,} is to be {last.name!r}, "
                f"and there are {len(self._places):,} images here."
            )
        meter = self.scoring.meter(range(first.offset, last.offset + 1))
        content = io.BytesIO()
        torch.save(meter.state(), content)
        return content.getvalue()


def evaluate_in_shards(
    weights: str | Path,
    data: str | Path,
    shards: str | Path,
    split: str | None = None,
    *,
    engine: Literal["processes", "ray"] = "processes",
    address: str | None = None,
    workers: int | None = None,
    shard_rows: int = SHARD_ROWS,
    model: str | None = None,
    device: str | None = None,
    loaded: Loaded | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Score a model on data with known answers by many workers; called again, it does what is missing.

    The scores are those of `vision_ssm.evaluate`: counts to the bit where ``shard_rows`` is a multiple of the batch
    size and the processor's threads are as many, and else as far as rounding moves no answer. As there, an image that
    cannot be read is an error, since scores of the others would be scores of other data; shards that are done stay.

    A script that calls this guards its own code by ``if __name__ == "__main__":``, as the processes import it.

    Args:
        weights: as for `vision_ssm.evaluate`; a file or a name, which this process opens on the CPU, and every worker
            for itself.
        data: folder or name, which every worker opens for itself.
        shards: the folder, new or of the same evaluation.
        split: as for `vision_ssm.evaluate`.
        engine: ``processes`` of this machine, or ``ray``.
        address: of a Ray cluster; None starts one of this machine alone.
        workers: how many; None for one per GPU, else one per processor.
        shard_rows: images of a shard.
        model: registered name of the model that a checkpoint belongs to.
        device: of the workers; None for what there is.
        loaded: what ``weights`` hold, where this process has opened them before.
        on_progress: called with (images done, images in all).
        options: of `vision_ssm.evaluate`, ``batch_size``, ``img_size``, ``amp``, ``val_fraction``, ``download`` and the
            task's.

    Raises:
        DataError: as `vision_ssm.evaluate`; the folder cannot be written, holds what is of another job, or is damaged;
            workers end again and again.
        CheckpointError, ConfigError: as `vision_ssm.evaluate`.
    """
    hired, folder = Engine(engine, address, workers, device), Path(shards)
    require_writable(folder)
    scoring = open_scoring(loaded or open_model(weights, model=model, device="cpu"), data, split, **options)
    work = ScoreWork(located(weights, model), model, _whole(data, scoring), split, options)
    bench = ScoreBench(work, scoring)
    plan = plan_of(bench.references(), shard_rows, _SUFFIX)
    plan.begin(folder, bench.about())
    do_pieces(plan, plan.missing(folder), folder, work, hired, on_progress)
    meter = scoring.task.meter()
    meter.merge([_collected(plan.file(folder, piece), meter) for piece in plan.pieces])
    return evaluation(scoring, meter)


def _whole(data: str | Path, scoring: Scoring) -> str:
    """Return data as workers find them whatever folder they are started in; what has no files is a name."""
    path = os.path.expanduser(data)
    files = is_packed(data) or all(map(os.path.exists, scoring.samples.paths[:1]))
    return os.path.abspath(path) if files and os.path.exists(path) and not is_remote(data) else str(data)


def _ends_so(path: str, named: str) -> bool:
    """Whether a path is that of a sample which is named from another folder, where the data may be a relative path."""
    return os.path.normpath(path).endswith(os.path.normpath(named).lstrip("./\\"))


def _collected(path: Path, meter: Any) -> Any:
    """Read what `ScoreBench.content` wrote; beside plain values only records of the meter's own package."""
    package = type(meter).__module__.partition(".")[0]
    try:
        with path.open("rb") as file:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        return read_pickle(path, _records(named, package))
    except (OSError, RuntimeError, CheckpointError) as error:
        raise DataError(
            f"{str(path)!r} cannot be used ({error}); remove it, and the same call makes it anew."
        ) from error


def _records(names: Sequence[str], package: str) -> list[type]:
    """Return those of the named classes of a package that hold values and do nothing."""
    places = [name.rpartition(".") for name in names if name.partition(".")[0] == package]
    known = [getattr(importlib.import_module(module), name, None) for module, _, name in places]
    return [kind for kind in known if isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_fields"))]
