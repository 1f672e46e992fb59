"""Opening the weights that a command was given, and saying which they are where it was given none."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vision_ssm.cli.console import console

if TYPE_CHECKING:
    from vision_ssm.inference.weights import Loaded

__all__ = ["open_weights"]


def open_weights(weights: str | None, options: argparse.Namespace) -> Loaded:
    """Open ``weights`` for ``options.model`` on ``options.device``; None takes the shipped ones and tells on stderr."""
    from vision_ssm.inference.opening import open_model
    from vision_ssm.inference.shipped import DEFAULT, describe

    loaded = open_model(weights, model=options.model, device=options.device)
    if weights is None:
        console(stderr=True).print(f"no weights named; using {describe(DEFAULT, loaded.info)}", soft_wrap=True)
    return loaded
