"""What the processes of a run must have in common before they begin, and what is said when one of them is lost."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vision_ssm.errors import ConfigError, DataError, ProcessError
from vision_ssm.settings import differences
from vision_ssm.storage import require_writable, whole_file
from vision_ssm.training.assembly import Parts
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes

__all__ = ["contact", "require_same", "require_same_data", "require_same_folder"]


def require_same(config: TrainConfig, processes: Processes) -> None:
    """Make sure that all processes run the same code with the same settings; those that may change do not count.

    Raises ConfigError naming the rank and what differs.
    """
    if processes.world == 1:
        return
    own = {
        "versions": _versions(),
        "code": _code_digest(),
        "folder": str(config.run_folder),
        "config": config.to_dict(),
    }
    main, *others = processes.gather(own)
    for rank, other in enumerate(others, start=1):
        if other["versions"] != main["versions"]:
            told = f"has {other['versions']}, and rank 0 has {main['versions']}"
        elif other["code"] != main["code"]:
            told = "runs other code of vision_ssm than rank 0; install the same everywhere"
        elif changed := differences(type(config), main["config"], other["config"]):
            told = "; ".join(f"has {key} {new!r}, and rank 0 has {old!r}" for key, (old, new) in changed.items())
        elif other["folder"] != main["folder"]:
            told = f"writes to {other['folder']!r}, and rank 0 to {main['folder']!r}"
        else:
            continue
        raise ConfigError(f"rank {rank} {told}. All processes of a run need the same code and settings.")


def require_same_data(parts: Parts, processes: Processes) -> None:
    """Make sure that all processes have found the same images, and make equally many updates of them.

    Raises ConfigError naming the rank and what it has found.
    """
    if processes.world == 1:
        return
    sets = {"to train on": parts.train.dataset, "held out": parts.val.dataset}
    own = {name: (len(samples), samples.fingerprint) for name, samples in sets.items()}
    main, *others = processes.gather((len(parts.train), own))
    for rank, (batches, found) in enumerate(others, start=1):
        for name, (images, fingerprint) in found.items():
            if (images, fingerprint) != main[1][name]:
                raise ConfigError(
                    f"rank {rank} has {images:,} images {name}, and rank 0 has "
                    f"{main[1][name][0]:,}{'' if images != main[1][name][0] else ' others'}: all processes must see "
                    "the same data."
                )
        if batches != main[0]:
            raise ConfigError(f"rank {rank} has {batches:,} batches per epoch, and rank 0 has {main[0]:,}.")


def require_same_folder(folder: Path, processes: Processes) -> None:
    """Make sure that all processes can write to the run's folder, and that it is one folder on a disk they share.

    Raises ProcessError naming the ranks that cannot, or see another one.
    """
    if processes.world == 1:
        return
    # A name that nobody looked for before: network file systems remember for a while what was not there.
    mark = folder / f".writable.{processes.gather(secrets.token_hex(8))[0]}"
    with processes.together():
        if processes.is_main:
            with whole_file(mark) as part:
                part.touch()
    try:
        with processes.together():
            require_writable(folder)
            if not mark.exists():
                raise DataError(
                    f"{folder} is another folder here than that of rank 0: all processes must see the same folder for "
                    "runs (run.output), on a disk that they share."
                )
    finally:
        if processes.is_main:
            with suppress(OSError):  # then the next run there removes it
                mark.unlink()


@contextmanager
def contact(processes: Processes, place: Callable[[], str]) -> Iterator[None]:
    """Within the block the loss of another process is an error that says so, and where this one is.

    Raises ProcessError.
    """
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error)
        if processes.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in text.lower()):
            raise
        reason = f"lost contact with another process after {place()} ({text.splitlines()[0]})"
        advice = "Its own message says why, unless it was killed."
        raise ProcessError({processes.rank: reason}, processes.world, advice=advice, is_shared=False) from error


def _versions() -> str:
    return f"vision-ssm {version('vision-ssm')} and torch {torch.__version__}"


def _code_digest() -> str:
    root = Path(__file__).parents[1]
    running: Any = hashlib.blake2b(digest_size=16)
    for path in sorted(root.rglob("*.py")):
        running.update(path.relative_to(root).as_posix().encode())
        running.update(path.read_bytes())
    return str(running.hexdigest())
