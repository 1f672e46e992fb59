"""From what a user names (a weights file, or a published checkpoint and its model) to a model ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, ConfigError, suggestion
from vision_ssm.tasks.classification.classes import IMAGENET_CLASSES, imagenet_names
from vision_ssm.weights.files import Loaded, WeightsInfo, load_weights
from vision_ssm.weights.shipped import find_weights

__all__ = ["AMP_TYPES", "autocast", "choose_device", "open_model", "preprocessing_of"]

AMP_TYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_model(
    weights: str | Path | Loaded | None = None,
    *,
    model: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
) -> Loaded:
    """Return a model in evaluation mode on ``device``, and what is known about it.

    Args:
        weights: a weights file of this library, or the name of one that ships with it; None for the one that is
            used where none is named (`vision_ssm.weights.shipped`). The name of a model takes its published
            weights, from the hub or the cache. With ``model``, a checkpoint without description, such as the
            published files. Or a model that is loaded already.
        model: registered name of the model that a checkpoint belongs to.
        model_options: further options of that model, such as ``{"num_classes": 10}``.
        device: see `choose_device`.

    Raises:
        CheckpointError: the file cannot be used; ConfigError: unknown model, option or device, or a model without
            a checkpoint.
    """
    chosen = choose_device(device)
    if isinstance(weights, Loaded):
        return Loaded(weights.model.eval().to(chosen), weights.info)
    from vision_ssm.checkpoints import load_published, read_checkpoint
    from vision_ssm.models.registry import create_model, list_models

    options = dict(model_options or {})
    if model is None:
        models = list_models()
        if not (isinstance(weights, str) and weights.partition(".")[0] in models and not Path(weights).exists()):
            return load_weights(find_weights(weights, models=models), chosen)
        model = weights
        network = create_model(model, pretrained=True, **options)
    elif weights is None:
        raise ConfigError(f"model={model!r} says which model a checkpoint belongs to; name the checkpoint as well.")
    else:
        network = create_model(model, **options)
        try:
            load_published(network, read_checkpoint(weights).weights)
        except CheckpointError as error:
            raise CheckpointError(f"cannot load {str(weights)!r} into {model!r}: {error}") from error
    outputs = int(getattr(network, "num_classes", 0))
    names = imagenet_names() if outputs == IMAGENET_CLASSES else tuple(f"class {index}" for index in range(outputs))
    info = WeightsInfo(model, options, names, preprocessing_of(network))
    return Loaded(network.eval().to(chosen), info)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return the preprocessing that a timm model declares."""
    from timm.data.config import resolve_model_data_config

    return Preprocessing.from_dict(resolve_model_data_config(model))  # type: ignore[no-untyped-call]


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return a device that this machine has; None or ``auto`` takes a GPU if there is one, else the CPU.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; expected cpu, cuda, cuda:1, mps or auto.") from error
    if chosen.type not in ("cpu", "meta") and (chosen.index or 0) >= _device_count(chosen.type):
        raise ConfigError(f"device {str(chosen)!r} is not available on this machine; use cpu or auto.")
    return chosen


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Return the context in which the model runs: ``none``, ``bf16`` or ``fp16``.

    Raises:
        ConfigError: unknown precision.
    """
    if amp not in AMP_TYPES:
        raise ConfigError(f"unknown amp {amp!r}, expected one of {', '.join(AMP_TYPES)}.{suggestion(amp, AMP_TYPES)}")
    dtype = AMP_TYPES[amp]
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


def _device_count(kind: str) -> int:
    module = torch.get_device_module(kind)
    return int(module.device_count()) if module.is_available() else 0
