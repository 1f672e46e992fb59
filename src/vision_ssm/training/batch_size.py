"""``data.batch_size: auto``: as many images per step as fit into memory, found by making steps in a process apart.

That process (``python -m vision_ssm.training.trial``) makes steps of 2, 4, 8, ... copies of one training image and
tells what each has taken. From the last two a line is drawn, and the largest size below a share of the free memory is
taken. Nothing of it stays in the process that trains.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vision_ssm.errors import ConfigError
from vision_ssm.settings import to_mapping
from vision_ssm.tasks.task import Task
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.recipes import read_recipe

__all__ = ["LARGEST", "free_memory", "largest_that_fits", "with_batch_size"]

SHARE = 0.8
"""Of the free memory; the rest is for the processes that decode, and for what other programs take meanwhile."""

LARGEST = 256
"""Per process: the learning rates of the recipes are of batches about so large, and larger ones are not faster."""

LEAST_UPDATES = 8
"""Of an epoch: a batch that is much of a small data set leaves few updates to learn by."""

Steps = Sequence[tuple[int, int]]
"""(images, bytes at the highest point) of the trial steps, from few to many images."""


def with_batch_size(
    config: TrainConfig, task: Task, images: int, processes: Processes, *, resuming: bool
) -> tuple[TrainConfig, str]:
    """Return the configuration with a number in place of ``auto``, and why it is this one, in a sentence.

    A run that is resumed has its number of before. Of several processes the main one measures for all.

    Args:
        config: whose ``data.batch_size`` is ``auto``.
        task: for what batches must be a multiple of.
        images: to train on.
        processes: that share them.
        resuming: the run was begun before.

    Raises:
        ConfigError: not even the smallest batch fits, or memory cannot be measured here.
    """
    if resuming:
        known = read_recipe(config.run_folder / "config.yaml")["data"]["batch_size"]
        return config.replace(**{"data.batch_size": known}), f"data.batch_size is {known}, as before."
    found = (0, "", "")
    processes.at("looking for a batch size")
    if processes.is_main:
        found = _found(config, task, images, processes)
    size, told, fault = processes.gather(found)[0]
    if fault:
        raise ConfigError(fault)
    return config.replace(**{"data.batch_size": size}), told


def _found(config: TrainConfig, task: Task, images: int, processes: Processes) -> tuple[int, str, str]:
    """The size and why, or what is in the way."""
    first = max(2, task.batch_multiple)
    most = min(LARGEST, images // (processes.world * config.optim.accumulate * LEAST_UPDATES))
    try:
        free = free_memory(processes.device)
        steps = _trial(config, max(first, most), int(SHARE * free))
    except ConfigError as error:
        return 0, "", str(error)
    size, needed = largest_that_fits(steps, first, max(first, most), int(SHARE * free))
    gib = f"{free / 2**30:.1f} GiB"
    if size is None:
        return (
            0,
            "",
            (
                f"data.batch_size auto: a step of {first} images takes {needed / 2**30:.1f} GiB, and {gib} are free on "
                f"{processes.device}. Use a smaller model.img_size or model, or model.grad_checkpointing."
            ),
        )
    why = f"it takes about {needed / 2**30:.1f} GiB of {gib} that are free on {processes.device}"
    if 2 * size > most:
        limit = f"{LARGEST} is the most" if most == LARGEST else f"an epoch keeps {LEAST_UPDATES} updates or more"
        return size, f"data.batch_size is {size}: {why}, and {limit}.", ""
    return size, f"data.batch_size is {size}: {why}, and twice as many would take more than {SHARE:.0%}.", ""


def largest_that_fits(steps: Steps, first: int, most: int, budget: int) -> tuple[int | None, int]:
    """Return the largest of first, 2 first, 4 first, ... up to ``most`` whose step fits, and the bytes it takes.

    What no step was made of is on the line through the last two. None with the bytes of ``first`` where that does not
    fit; sizes beyond a step that ran out of memory (bytes above ``budget``) do not.
    """
    known = dict(steps)
    (below, low), (above, high) = steps[-2:] if len(steps) > 1 else ((0, 0), steps[-1])
    slope = max(0.0, (high - low) / (above - below))
    found: tuple[int | None, int] = None, known[first]
    size = first
    while size <= most:
        needed = known.get(size, int(high + slope * (size - above)))
        if needed > budget:
            break
        found = size, needed
        size *= 2
    return found


def _trial(config: TrainConfig, most: int, budget: int) -> Steps:
    """Make the steps in a process of its own, up to half the budget. Raises ConfigError with what it met."""
    alone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in alone and "TORCHELASTIC" not in key}
    question = {"config": to_mapping(config), "most": most, "budget": budget}
    done = subprocess.run(
        [sys.executable, "-m", "vision_ssm.training.trial"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    fault = next((line["error"] for line in lines if "error" in line), None)
    steps = [(line["images"], line["bytes"]) for line in lines if "images" in line]
    if steps and (fault is None or len(steps) > 1):
        return steps
    why = fault or (done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[-1]
    raise ConfigError(f"data.batch_size auto: the trial step failed ({why}); give a number.")


def free_memory(device: torch.device) -> int:
    """Return the bytes that one process may take: of a GPU, or of this machine's memory or control group's.

    Raises:
        ConfigError: this system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        raise ConfigError(f"data.batch_size auto cannot measure memory on {device} here; give a number.")
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    for group in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # no group, or none with a limit
            free = min(free, _free_in(group))
    return max(free, 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _free_in(group: Path) -> int:
    """What a control group of version 2 or 1 leaves; files that are only kept in memory for speed give way."""
    second = (group / "memory.max").exists()
    names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit, used = (int((group / name).read_text(encoding="ascii")) for name in names)
    kept = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return limit - used + int(kept["inactive_file" if second else "total_inactive_file"])
