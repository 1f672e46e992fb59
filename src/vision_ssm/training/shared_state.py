"""The state of a run that many processes write together: a folder, whole or not there.

Each process writes what it holds (torch.distributed.checkpoint), beside it is `RECORD`: everything that is no tensor,
shape and type of each tensor, and a digest of every file. Any number of processes reads it again, in shards or whole.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import CheckpointError
from vision_ssm.storage import to_disk
from vision_ssm.training.distributed import Processes

__all__ = ["RECORD", "Key", "fill", "read_record", "unwhole", "write_folder"]

RECORD = "run.pt"

Key = tuple[str | int, ...]
"""Where a tensor is in a state, such as ("model", "head.weight")."""


def write_folder(path: Path, state: Mapping[str, Any], processes: Processes) -> None:
    """Write a state into the folder ``path``, all processes together; there is none of that name until all is written.

    Raises CheckpointError, on every process, when one cannot write its part, with its rank and the reason.
    """
    import torch.distributed.checkpoint as dcp  # here: it takes a second, and most runs are of one process
    from torch.distributed.checkpoint.api import CheckpointException

    from vision_ssm.training.shared_index import INDEX

    part = path.with_name(f".{path.name}.part")
    tensors: dict[str, Tensor] = {}
    record = _taken_apart(state, tensors, ())
    with processes.together(), _as_checkpoint_error():
        if processes.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
    with processes.together(), _as_checkpoint_error():  # it is there now, for all that see the same disk
        if not part.is_dir():
            raise CheckpointError(f"{part} is not here: all processes must see the same folder for runs (run.output).")
    try:
        dcp.save(tensors, checkpoint_id=part)  # type: ignore[attr-defined]
    except CheckpointException as error:
        reasons = {rank: _reason(failure) for rank, (failure, _) in error.failures.items()}
        told = CheckpointError("; ".join(f"rank {rank}: {reason}" for rank, reason in sorted(reasons.items())))
        told.is_shared = True
        raise told from error
    own = sorted(part.glob(f"__{processes.rank}_*"))
    digests = {
        name: text for each in processes.gather({f.name: _digest(f) for f in own}) for name, text in each.items()
    }
    with processes.together(), _as_checkpoint_error():
        if processes.is_main:
            digests[INDEX] = _digest(part / INDEX)
            torch.save({**record, "files": digests}, part / RECORD)
            to_disk(part / RECORD)
            to_disk(part)
            os.replace(part, path)
            to_disk(path.parent)


def read_record(path: Path) -> dict[str, Any]:
    """What is known of a state without its tensors, which are on the meta device.

    Raises CheckpointError when it is damaged.
    """
    try:
        record = torch.load(path / RECORD, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes bring out
        raise CheckpointError(f"{path}: damaged, or not a training checkpoint.") from error
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise CheckpointError(f"{path}: damaged, or not a training checkpoint.")
    return record


def unwhole(path: Path, files: Mapping[str, str], processes: Processes | None = None) -> str | None:
    """Say which file is missing or is not what was written; each process looks at its share of them."""
    rank, world = (0, 1) if processes is None else (processes.rank, processes.world)
    problem: str | None = None
    for name in sorted(files)[rank::world]:
        try:
            if Path(name).name != name or _digest(path / name) != files[name]:
                problem = f"{name} is not what was written"
        except OSError as error:
            problem = f"{name} cannot be read: {error.strerror}"
    problems = [problem] if processes is None else processes.gather(problem)
    return next((each for each in problems if each is not None), None)


def fill(path: Path, record: Mapping[str, Any], like: Callable[[Key], Tensor | None]) -> dict[str, Any]:
    """Return the state with its tensors, each in shards where ``like`` its place is.

    Where processes run together all must ask, for the same. Raises CheckpointError when it is damaged, or asks for what
    could run code.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from vision_ssm.training.shared_index import IndexedReader

    tensors: dict[str, Tensor] = {}
    reader = IndexedReader(path)

    def place(value: Any, key: Key) -> Any:
        if isinstance(value, Tensor):
            model = like(key)
            if model is not None and model.shape == value.shape:
                made = torch.empty_like(model, dtype=value.dtype).detach()
            else:
                made = torch.empty(value.shape, dtype=value.dtype)
            return tensors.setdefault("/".join(map(str, key)), made)
        return _each(value, key, place)

    state: dict[str, Any] = place(dict(record), ())
    alone = not torch.distributed.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what no_dist says
            dcp.load(tensors, storage_reader=reader, no_dist=alone)  # type: ignore[attr-defined]
    except (CheckpointException, pickle.UnpicklingError, RuntimeError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {str(error).splitlines()[0]}") from error
    return state


def _taken_apart(value: Any, tensors: dict[str, Tensor], key: Key) -> Any:
    if isinstance(value, Tensor):
        tensors["/".join(map(str, key))] = value.detach()
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return _each(value, key, lambda inner, at: _taken_apart(inner, tensors, at))


def _each(value: Any, key: Key, change: Callable[[Any, Key], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: change(inner, (*key, name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(change(inner, (*key, number)) for number, inner in enumerate(value))
    return value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


@contextmanager
def _as_checkpoint_error() -> Any:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {error.filename}: {error.strerror or error}.") from error


def _reason(failure: BaseException) -> str:
    return str(failure).partition("\n")[0] or type(failure).__name__
