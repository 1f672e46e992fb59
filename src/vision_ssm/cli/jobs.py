"""What the commands share that put what they find into shards, by many workers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vision_ssm.cli.arguments import image_options, task_options, whole_number
from vision_ssm.cli.console import note, print_json, progress_bar, say
from vision_ssm.cli.images import open_weights, print_failures
from vision_ssm.errors import ConfigError

__all__ = ["add_job_options", "job_options", "refuse_without_shards", "run_in_shards"]

SHOWN = 50  # failures on the terminal; the shards have all
_ONLY_HERE = ("engine", "address", "workers", "shard_rows")


def add_job_options(
    parser: argparse.ArgumentParser,
    output: Any = None,
    about: str = "also from tar files, parquet tables, and addresses (s3://)",
    own_workers: bool = False,
) -> None:
    """Declare what makes a job of a command.

    Args:
        parser: of the command.
        output: where the folder belongs, if it takes the place of another output.
        about: a line above the options.
        own_workers: whether the command has an option ``--workers`` of its own.
    """
    group = parser.add_argument_group("very many images", about)
    (output or group).add_argument(
        "--shards",
        type=Path,
        metavar="DIR",
        help="write shards to this folder, by several workers; the same command goes on with what is missing",
    )
    group.add_argument("--engine", choices=("processes", "ray"), help="who does it (default: processes)")
    group.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster; default: one of this machine alone")
    if not own_workers:
        group.add_argument(
            "--workers", type=whole_number(1), metavar="N", help="default: one per GPU, else one per processor"
        )
    group.add_argument("--shard-rows", type=whole_number(1), metavar="N", help="images of a shard (default: 1024)")


def run_in_shards(
    options: argparse.Namespace,
    command: Literal["predict", "features"],
    weights: str | None,
    images: Sequence[str],
) -> int:
    """Do the job and print its summary; 1 when some of the images could not be used.

    Args:
        options: of the command.
        command: what is done.
        weights: as they were named.
        images: as they were named.

    Raises:
        ConfigError: an option was given that a job does not have.
    """
    from vision_ssm.inference.jobs.job import NOT_IN_JOBS, run_job

    for name, reason in NOT_IN_JOBS.items():
        if getattr(options, name, None):
            raise ConfigError(f"--{name} does not go with --shards: {reason}.")
    loaded = open_weights(weights, options, device="cpu")  # the workers open it for themselves, and have the device
    asked = {**job_options(options), **image_options(options), **task_options(options, loaded.info.task)}
    with progress_bar("working", shown=not options.json) as on_progress:
        job = run_job(
            command,
            weights,
            images,
            options.shards,
            model=options.model,
            loaded=loaded,
            on_progress=on_progress,
            **asked,
        )
    if options.json:
        print_json(job.to_dict())
        return 1 if job.failures else 0
    resumed = f", {job.resumed:,} of them from before" if job.resumed else ""
    say(f"{job.images:,} images in {job.shards:,} shard{'s' if job.shards != 1 else ''}{resumed}: {job.folder}")
    say(f"by {job.weights}")
    print_failures(job.failures[:SHOWN], job.images - min(len(job.failures), SHOWN))
    if len(job.failures) > SHOWN:
        note(f"... and {len(job.failures) - SHOWN:,} more: rows of the shards that have an `error`", mark="  ")
    return 1 if job.failures else 0


def job_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of jobs that were given, by the names of `run_job`."""
    return {name: getattr(options, name) for name in _ONLY_HERE if getattr(options, name) is not None}


def refuse_without_shards(options: argparse.Namespace, own: str = "") -> None:
    """Raise ConfigError for an option of jobs without a folder for their shards; ``own`` is one of the command, too."""
    for name in _ONLY_HERE:
        if name != own and getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} belongs to --shards DIR, which is not given.")
