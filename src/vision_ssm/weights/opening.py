"""From what a user names (a weights file, or a published checkpoint and its model) to a model ready to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.device import choose_device
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.tasks.exported import StandIn
from vision_ssm.tasks.registry import DEFAULT, find_task
from vision_ssm.weights.exported import is_exported, open_exported, require_cpu
from vision_ssm.weights.files import Loaded, WeightsInfo, load_weights, restored_task
from vision_ssm.weights.recognition import misfit
from vision_ssm.weights.shipped import best_of_run, find_weights

__all__ = ["open_model"]


def open_model(
    weights: str | Path | Loaded | None = None,
    *,
    model: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
) -> Loaded:
    """Return a model in evaluation mode on ``device``, and what is known about it.

    Args:
        weights: a weights file of this library, the folder of a run for its best one, or the name of one that ships
            with it; None for the one that is used where none is named (`vision_ssm.weights.shipped`). The name of a
            model takes its published weights, from the hub or the cache. With ``model``, a checkpoint without
            description, such as the published files. Or a model that is loaded already, or a file that
            `vision_ssm.export` wrote, which its runtime executes.
        model: registered name of the model that a checkpoint belongs to.
        model_options: further options of that model, such as ``{"num_classes": 10}``.
        device: see `vision_ssm.device.choose_device`.

    Raises:
        CheckpointError: the file cannot be used; ConfigError: unknown model, option or device, or a model without
            a checkpoint.
    """
    chosen = choose_device(device)
    if isinstance(weights, Loaded) and isinstance(weights.model, StandIn):
        require_cpu(device)
        return weights
    if isinstance(weights, Loaded):
        return Loaded(weights.model.eval().to(chosen), weights.info)
    if weights is not None and is_exported(weights):
        if model is not None or model_options:
            raise ConfigError(f"{str(weights)!r} is an exported model, which says itself what it is; leave model out.")
        return open_exported(weights, device)
    from vision_ssm.checkpoints import load_published, read_checkpoint
    from vision_ssm.models.registry import create_model, list_models, list_whole_models
    from vision_ssm.models.variant import full_name, list_aliases

    options = dict(model_options or {})
    if model is None:
        models = [*list_models(), *list_whole_models(), *list_aliases()]
        if not (isinstance(weights, str) and weights.partition(".")[0] in models and not Path(weights).exists()):
            return load_weights(find_weights(weights, models=models), chosen)
        model = full_name(weights)
        network = create_model(model, pretrained=True, **options)
    elif weights is None:
        raise ConfigError(f"model={model!r} says which model a checkpoint belongs to; name the checkpoint as well.")
    else:
        model = full_name(model)
        network = create_model(model, **options)
        try:
            checkpoint = read_checkpoint(best_of_run(weights))
        except CheckpointError as error:
            raise CheckpointError(f"cannot load {str(weights)!r} into {model!r}: {error}") from error
        try:
            load_published(network, checkpoint.weights)
        except CheckpointError as error:
            told = f"cannot load {str(weights)!r} into {model!r}"
            raise CheckpointError(f"{told}{misfit(checkpoint, network, error)}") from error
    # A published model says its task itself where it is not a classifier.
    task = find_task(getattr(network, "published_task", DEFAULT))
    record = task.load().published_record(network)
    source = model if full_name(str(weights)) == model else str(weights)
    info = WeightsInfo(model, options, task.name, record, Preprocessing(), source=source)
    prepared = restored_task(info).preprocessing(network)
    return Loaded(network.eval().to(chosen), dataclasses.replace(info, preprocessing=prepared))
