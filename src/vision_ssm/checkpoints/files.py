"""Reading weights from files without running anything that is in them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vision_ssm.checkpoints.content import kind_of
from vision_ssm.checkpoints.pickles import read_pickle
from vision_ssm.checkpoints.tensors import not_plain
from vision_ssm.errors import CheckpointError, suggestion

__all__ = ["WEIGHT_KEYS", "Checkpoint", "read_checkpoint", "select_weights"]

# What a training state may call its weights, per choice; the first one present is taken.
WEIGHT_KEYS = {"model": ("model", "state_dict"), "model_ema": ("model_ema", "state_dict_ema", "ema")}

# What DistributedDataParallel and averages put before every name, what torch.compile puts before those of the module
# that it compiled, and the counter of torch's AveragedModel.
_WRAPPER, _COMPILED, _AVERAGED = "module", "_orig_mod", "n_averaged"


class Checkpoint(NamedTuple):
    """Weights and whatever else the file says."""

    weights: dict[str, Tensor]
    metadata: dict[str, Any]


def read_checkpoint(path: str | Path, *, weights: str = "model") -> Checkpoint:
    """Read a safetensors or torch file, bare weights or a whole training state, whatever its name ends with.

    Pickles are read without running anything in them, see `vision_ssm.checkpoints.pickles`. What torch.compile,
    DistributedDataParallel and averages put before the names is taken off.

    Args:
        path: the file.
        weights: 'model' or, for a training state that has them, 'model_ema'.

    Returns:
        (weights, metadata): name -> tensor on the CPU, and the file's other entries (for safetensors its metadata).

    Raises:
        CheckpointError: no such file, not a checkpoint, cut short, or a pickle that asks to run code.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "safetensors" or (kind == "unknown" and path.suffix.lower() == ".safetensors"):
        return _read_safetensors(path)
    content = read_pickle(path)
    if isinstance(content, torch.nn.Module) or not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    chosen, others = _split(content, weights, str(path))
    return Checkpoint(chosen, others)


def select_weights(state: Mapping[str, Any], weights: str = "model", part: str = "") -> dict[str, Tensor]:
    """Return the weights within a training state, or the dict itself if it holds nothing but tensors.

    Args:
        state: the checkpoint.
        weights: 'model' or 'model_ema'.
        part: dotted name of a module of the published model, such as 'backbone'; '' for the whole.

    Raises:
        CheckpointError: no such entry or part, or no weights at all.
    """
    found = _split(state, weights, "the checkpoint")[0]
    if not part:
        return found
    inside = {name.removeprefix(f"{part}."): x for name, x in found.items() if name.startswith(f"{part}.")}
    if not inside:
        parts = sorted({name.partition(".")[0] for name in found})
        raise CheckpointError(f"the checkpoint has no part {part!r}, only {', '.join(parts)}.{suggestion(part, parts)}")
    return inside


def _split(state: Mapping[str, Any], weights: str, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if weights not in WEIGHT_KEYS:
        raise CheckpointError(
            f"weights must be one of {', '.join(WEIGHT_KEYS)}, got {weights!r}.{suggestion(weights, WEIGHT_KEYS)}"
        )
    inner: Mapping[str, Any] = state
    others: dict[str, Any] = {}
    wrappers = [key for keys in WEIGHT_KEYS.values() for key in keys if isinstance(state.get(key), Mapping)]
    if wrappers:
        key = next((key for key in WEIGHT_KEYS[weights] if key in wrappers), None)
        if key is None:
            raise CheckpointError(f"{source} holds no {weights!r} weights, only {', '.join(wrappers)}")
        inner = state[key]
        skip = {*wrappers, "optimizer", "opt", "lr_scheduler", "scaler"}
        others = {k: vars(v) if isinstance(v, argparse.Namespace) else v for k, v in state.items() if k not in skip}
    inner = _without_wrappers(inner, source)
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(inner):
        strange = [str(name) for name in inner if name not in tensors]
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise CheckpointError(
            f"{source} is not a dictionary of weights: " + (f"no tensor under {shown}" if strange else "it is empty")
        )
    for name, tensor in tensors.items():
        if storage := not_plain(tensor):
            raise CheckpointError(f"{source}: {name} is {storage}; weights must be plain, dense tensors")
    return tensors, others


def _without_wrappers(state: Mapping[Any, Any], source: str) -> dict[str, Any]:
    """Take off what wrappers add to the names, in whatever order and to however many of them."""
    found: dict[str, Any] = {}
    for given, value in state.items():
        if not isinstance(given, str):
            raise CheckpointError(f"{source} is not a dictionary of weights: a name in it is {given!r}, not text")
        parts = [part for part in given.split(".") if part != _COMPILED]
        while len(parts) > 1 and parts[0] == _WRAPPER:
            del parts[0]
        name = ".".join(parts)
        if name == _AVERAGED and isinstance(value, Tensor | int):
            continue
        if name in found:
            raise CheckpointError(f"{source} holds {name} twice, with and without what a wrapper puts before it")
        found[name] = value
    return found


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except Exception as error:  # beside its own errors, whatever torch says of a type it does not know
        reason = f": {error}" if isinstance(error, SafetensorError) else ""
        raise CheckpointError(f"{path} is not a whole safetensors file{reason}") from error
    return Checkpoint(_without_wrappers(tensors, str(path)), metadata)
