"""Which model a file of weights holds, where it does not fit the one that was named."""

from __future__ import annotations

import torch
from torch import nn

from vision_ssm.checkpoints import convert
from vision_ssm.checkpoints.files import Checkpoint
from vision_ssm.errors import CheckpointError
from vision_ssm.models.denoisers import DENOISERS
from vision_ssm.models.registry import create_model, list_models
from vision_ssm.weights.files import DESCRIPTION, WeightsInfo

__all__ = ["misfit"]


def misfit(checkpoint: Checkpoint, model: nn.Module, error: CheckpointError) -> str:
    """Say what is wrong with the weights of a file for ``model``, first of all of which other model they are.

    That is known by the file's own description, else by its tensors, which takes a few seconds: it builds all models.
    """
    asked = getattr(model, "pretrained_cfg", {}).get("architecture")
    held = _described(checkpoint) or _same_tensors(checkpoint, asked)
    return f". {held}. What differs: {error}" if held else f": {error}"


def _described(checkpoint: Checkpoint) -> str | None:
    try:
        info = WeightsInfo.from_json(checkpoint.metadata[DESCRIPTION])
    except (KeyError, CheckpointError):  # not ours, or damaged: the tensors tell
        return None
    options = ", ".join(f"{key} {value}" for key, value in info.model_options.items())
    return f"It holds a {info.model}{f' with {options}' if options else ''}, which it says itself"


def _same_tensors(checkpoint: Checkpoint, asked: str | None) -> str | None:
    with torch.device("meta"):  # shapes only
        shapes = {name: torch.empty(tensor.shape) for name, tensor in checkpoint.weights.items()}
        for name in (*list_models(), *DENOISERS):
            model = create_model(name)
            classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
            prefixes = [classifier] if isinstance(classifier, str) else classifier
            try:
                convert(
                    model, shapes, replaceable=tuple(f"{p}.{kind}" for p in prefixes for kind in ("weight", "bias"))
                )
            except CheckpointError:
                continue
            return None if name == asked else f"It holds the weights of {name}: --model {name}"
    return None
