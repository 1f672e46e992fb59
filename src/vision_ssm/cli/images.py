"""What the commands that run a model on files of images share: opening its weights, and listing what went wrong."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vision_ssm.cli.console import memory, note
from vision_ssm.errors import DataError, VisionSSMError

if TYPE_CHECKING:
    from vision_ssm.inference.inputs import Failure
    from vision_ssm.weights.files import Loaded

__all__ = ["described", "open_weights", "print_failures", "warn_of_memory"]

MOST_A_PIXEL = 4096
"""Bytes that no model here exceeds; what is small even so need not be counted."""

MUCH = 0.5
"""Share of the memory from which on it is worth a word before the work begins."""


def open_weights(weights: str | None, options: argparse.Namespace, device: str | None = None) -> Loaded:
    """Open ``weights`` for ``options.model`` on a device, by default ``options.device``.

    None takes the shipped ones and tells on stderr.
    """
    from vision_ssm.weights.opening import open_model
    from vision_ssm.weights.shipped import DEFAULT

    loaded = open_model(weights, model=options.model, device=device or options.device)
    if weights is None:
        note(f"no weights named; using {DEFAULT}: {described(loaded)}", mark="")
    return loaded


def described(loaded: Loaded) -> str:
    """Say in one line which model it is, what it can tell, and how well it did on its validation images."""
    task, info = loaded.task(), loaded.info
    knows = task.knows()
    value = info.metrics.get(task.primary.name)
    score = (
        ""
        if not isinstance(value, int | float)
        else f"; {task.primary.text(value)} {task.primary.title} on its validation images"
    )
    return f"a {info.model}{f' that knows {knows}' if knows else ''}{score}"


def warn_of_memory(
    images: Sequence[str], loaded: Loaded, options: argparse.Namespace, asked: Mapping[str, Any] | None = None
) -> None:
    """Tell on stderr how much memory the largest image takes at its own size, where that is much of what there is.

    Args:
        images: as they were named.
        loaded: the model.
        options: of the command.
        asked: the task's options for predictions; None where only features are taken.
    """
    task = loaded.task()
    if asked is not None:
        task.ask(asked)
    if options.img_size != "native" and not (options.img_size is None and task.native):
        return
    import torch

    from vision_ssm.tasks.exported import StandIn

    if isinstance(loaded.model, StandIn):  # whose layers nobody here can count
        return

    from vision_ssm.analysis import cost
    from vision_ssm.data.scenes import check_any, is_scene
    from vision_ssm.inference.inputs import find_images

    sizes: dict[str, tuple[int, int]] = {}
    for named in find_images(images, []):
        with suppress(DataError):  # the prediction lists it
            sizes[named.name] = check_any(str(named.image))
    device = next(loaded.model.parameters()).device
    if not sizes or device.type not in ("cpu", "cuda"):
        return
    name, (width, height) = max(sizes.items(), key=lambda item: item[1][0] * item[1][1])
    there_is = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _memory_of_this_machine()
    if there_is is None or MOST_A_PIXEL * width * height < MUCH * there_is:
        return
    try:
        part, size = task.backbone(loaded.model), (height, width)
        if asked is not None:
            part, size = task.at_once(loaded.model, size, scene=is_scene(name))
        taken = cost(part, size).inference_bytes
    except VisionSSMError:  # a size that this model refuses, which is a failure of the image
        return
    if taken > MUCH * there_is:
        has_windows = asked is not None and "window" in getattr(task.Options, "model_fields", {})
        less = "Windows (--window N) or a smaller --img-size take" if has_windows else "A smaller --img-size takes"
        note(
            f"{name} has {width:,} x {height:,} pixels: at its own size it may take {memory(taken)} of memory, and "
            f"there are {memory(there_is)}. {less} less."
        )


def _memory_of_this_machine() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def print_failures(failures: Sequence[Failure], successes: int) -> None:
    """List on stderr which images could not be used, and why."""
    if not failures:
        return
    failed = len({failure.path for failure in failures})
    note(f"{failed} of {failed + successes} could not be used:", mark="", style="bold red")
    for failure in failures:
        named = failure.path in failure.reason or repr(failure.path)[1:-1] in failure.reason
        reason = failure.reason if named else f"{failure.path}: {failure.reason}"
        note(reason, mark="  ")
