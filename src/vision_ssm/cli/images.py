"""What the commands that run a model on files of images share: opening its weights, and listing what went wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_ssm.cli.console import note

if TYPE_CHECKING:
    from vision_ssm.inference.inputs import Failure
    from vision_ssm.weights.files import Loaded

__all__ = ["described", "open_weights", "print_failures"]


def open_weights(weights: str | None, options: argparse.Namespace) -> Loaded:
    """Open ``weights`` for ``options.model`` on ``options.device``; None takes the shipped ones and tells on stderr."""
    from vision_ssm.weights.opening import open_model
    from vision_ssm.weights.shipped import DEFAULT

    loaded = open_model(weights, model=options.model, device=options.device)
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


def print_failures(failures: Sequence[Failure], successes: int) -> None:
    """List on stderr which images could not be used, and why."""
    if not failures:
        return
    note(f"{len(failures)} of {len(failures) + successes} could not be used:", mark="", style="bold red")
    for failure in failures:
        named = failure.path in failure.reason or repr(failure.path)[1:-1] in failure.reason
        reason = failure.reason if named else f"{failure.path}: {failure.reason}"
        note(reason, mark="  ")
