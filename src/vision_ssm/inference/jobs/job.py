"""Predictions or features of very many images, by many workers, into shards of a folder; what is done stays done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vision_ssm.device import choose_device
from vision_ssm.errors import ConfigError
from vision_ssm.inference.inputs import Failure
from vision_ssm.inference.jobs.crew import AnyWork, carry_out
from vision_ssm.inference.jobs.plan import Piece, Plan, plan_of
from vision_ssm.inference.jobs.processes import ProcessCrew, processors
from vision_ssm.inference.jobs.ray_crew import RayCrew
from vision_ssm.inference.jobs.references import list_references, parquet
from vision_ssm.inference.jobs.work import Bench, Command, Work, located
from vision_ssm.storage import require_writable, whole_file
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.opening import open_model

__all__ = ["ENGINES", "NOT_IN_JOBS", "SHARD_ROWS", "Engine", "Job", "do_pieces", "run_job"]

ENGINES: tuple[Literal["processes"], Literal["ray"]] = ("processes", "ray")

SHARD_ROWS = 1024
"""Images of a shard, where nothing else is asked for: 64 batches of the default size."""

NOT_IN_JOBS = {
    "pictures": "pictures of results are drawn without shards",
    "results": "files of results are written without shards",
    "export": "files for other programs are written without shards",
    "output": "shards take the place of other files",
    "layers": "maps of layers are written without shards",
}
"""Options of the commands that a job does not have, and why."""


@dataclass(frozen=True)
class Engine:
    """Who does a job.

    Attributes:
        name: of `ENGINES`.
        address: of a Ray cluster; None starts one of this machine alone.
        workers: how many; None for one per GPU, else one per processor.
        device: of the workers; None for what there is.

    Raises:
        ConfigError: a value out of range, an address without Ray, or a device that processes of this machine lack.
    """

    name: str = "processes"
    address: str | None = None
    workers: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {self.name!r}.")
        if self.address is not None and self.name != "ray":
            raise ConfigError(
                f"address {self.address!r} is that of a Ray cluster; give engine='ray' (--engine ray), too."
            )
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"a job has at least one worker, got workers={self.workers}.")
        if self.name == "processes":
            choose_device(self.device)


@dataclass(frozen=True)
class Job:
    """What `run_job` returns.

    Attributes:
        folder: of the shards, parquet files that `pyarrow.parquet.read_table` and others read as one table.
        images: rows of all shards.
        shards: how many there are.
        resumed: how many of these were there before.
        failures: images that could not be used, whose rows have an ``error``; folders without any among them.
        weights: the file, or the name, of the model.
    """

    folder: Path
    images: int
    shards: int
    resumed: int
    failures: tuple[Failure, ...]
    weights: str

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        counts = {"images": self.images, "shards": self.shards, "resumed": self.resumed}
        return {"folder": str(self.folder), "weights": self.weights, **counts, "failures": failures}


def run_job(
    command: Command,
    weights: str | Path | None,
    images: str | Path | Iterable[str | Path],
    shards: str | Path,
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
) -> Job:
    """Predict, or take features of, images by many workers, and write the results as parquet files.

    Row by row the results are those of `vision_ssm.predict` or `vision_ssm.features` of the same images; equal to the
    bit where ``shard_rows`` is a multiple of the batch size and the processor's threads are as many, and else within
    rounding. Each shard appears when it is whole. Called again with the same arguments after whatever ended it, the job
    does the shards that are missing.

    A script that calls this guards its own code by ``if __name__ == "__main__":``, as the processes import it.

    Args:
        command: ``predict`` or ``features``.
        weights: as for `vision_ssm.load_model`; a file or a name, which this process opens on the CPU, and every worker
            for itself.
        images: see `vision_ssm.inference.jobs.references.list_references`.
        shards: the folder, new or of the same job.
        engine: ``processes`` of this machine, or ``ray``.
        address: of a Ray cluster; None starts one of this machine alone.
        workers: how many; None for one per GPU, else one per processor.
        shard_rows: images of a shard.
        model: as for `vision_ssm.load_model`.
        device: of the workers, as for `vision_ssm.load_model`.
        loaded: what ``weights`` hold, where this process has opened them before.
        on_progress: called with (images done, images in all).
        options: of the command, ``batch_size``, ``img_size``, ``amp``, ``max_pixels`` and the task's.

    Raises:
        DataError: no image at all; the folder cannot be written, or holds shards of another job, which the images
            are when one of their files has been written anew; workers end again and again.
        ConfigError, CheckpointError: as the command.
    """
    hired = Engine(engine, address, workers, device)
    _require_known(options)
    parquet()
    folder = Path(shards)
    require_writable(folder)
    # Here it is only asked what it is: this machine need not have the device of the workers.
    loaded = loaded or open_model(weights, model=model, device="cpu")
    work = Work(command, None if weights is None else located(weights, model), model, options)
    bench = Bench(work, loaded)
    if command == "predict":
        _ask(loaded.task(), options)
    failures: list[Failure] = []
    plan = plan_of(list_references([images] if isinstance(images, (str, Path)) else images, failures), shard_rows)
    plan.begin(folder, bench.about())
    source = loaded.info.source
    del bench, loaded  # their memory is for the workers
    missing = plan.missing(folder)
    do_pieces(plan, missing, folder, work, hired, on_progress)
    for piece in plan.pieces:
        failures += _failures(plan.file(folder, piece))
    resumed = len(plan.pieces) - len(missing)
    return Job(folder, plan.images, len(plan.pieces), resumed, tuple(failures), source)


def do_pieces(
    plan: Plan,
    missing: Sequence[Piece],
    folder: Path,
    work: AnyWork,
    engine: Engine,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Have the missing pieces of a plan done, and write the file of each when it is whole.

    ``on_progress`` is called with (images done, images in all), those of the pieces from before among them.
    """
    done = plan.images - sum(len(piece.references) for piece in missing)

    def keep(piece: Piece, content: bytes) -> None:
        nonlocal done
        with whole_file(plan.file(folder, piece)) as part:
            part.write_bytes(content)
        done += len(piece.references)
        if on_progress is not None:
            on_progress(done, plan.images)

    if on_progress is not None:
        on_progress(done, plan.images)
    if not missing:
        return
    if engine.name == "ray":
        ray_crew = RayCrew(work, engine.address, engine.workers, engine.device)
        carry_out(ray_crew, missing, ray_crew.workers, keep)
        return
    hands = min(engine.workers or _places(engine.device), len(missing))
    carry_out(ProcessCrew(work, hands, engine.device), missing, hands, keep)


def _require_known(options: dict[str, Any]) -> None:
    if options.get("batch_size", 1) < 1:
        raise ConfigError(f"batch_size must be at least 1, got {options['batch_size']}.")
    for name, reason in NOT_IN_JOBS.items():
        if name in options:
            raise ConfigError(f"a job has no option {name!r}: {reason}.")


def _ask(task: Any, options: dict[str, Any]) -> None:
    """Find out now rather than in the workers what the task does not know."""
    common = ("batch_size", "img_size", "amp", "max_pixels")
    task.ask({name: value for name, value in options.items() if name not in common})
    if task.wants_files():
        raise ConfigError(f"{task.wants_files()} are written to files, which a job does not; leave the option out.")


def _places(device: str | None) -> int:
    if device is None:
        import torch

        return torch.cuda.device_count() or processors()
    return processors() if device == "cpu" else 1


def _failures(path: Path) -> list[Failure]:
    table = parquet().read_table(path, columns=["path", "error"])
    rows = zip(table.column("path").to_pylist(), table.column("error").to_pylist(), strict=True)
    return [Failure(name, reason) for name, reason in rows if reason is not None]
