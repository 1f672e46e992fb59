"""Reading weights from files without running anything that is in them."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vision_ssm.errors import CheckpointError, suggestion

__all__ = ["WEIGHT_KEYS", "Checkpoint", "read_checkpoint", "select_weights"]

# What a training state may call its weights, per choice; the first one present is taken.
WEIGHT_KEYS = {"model": ("model", "state_dict"), "model_ema": ("model_ema", "state_dict_ema")}

_WRAPPER = "module."

# What torch's restricted unpickler raises on bytes that are no checkpoint, or only part of one.
_BROKEN = (
    RuntimeError,
    EOFError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)


# Types beyond tensors and plain containers that published files hold. yacs' configuration is a dictionary by nature and
# is read as one, so that yacs is not needed and none of its code runs.
_ADMITTED: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


class Checkpoint(NamedTuple):
    """Weights and whatever else the file says."""

    weights: dict[str, Tensor]
    metadata: dict[str, Any]


def read_checkpoint(path: str | Path, *, weights: str = "model") -> Checkpoint:
    """Read a .safetensors or torch (.pth, .pt, .bin, .ckpt) file, bare weights or a whole training state.

    Pickles are read with torch's restricted unpickler; of types beyond tensors and plain containers only
    argparse.Namespace and yacs.config.CfgNode are admitted, which the published files hold.

    Args:
        path: the file.
        weights: 'model' or, for a training state that has them, 'model_ema'.

    Returns:
        (weights, metadata): name -> tensor on the CPU, and the file's other entries (for safetensors its metadata).

    Raises:
        CheckpointError: no such file, not a checkpoint, cut short, or a pickle that asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_pickle(path)
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
        skip = {*wrappers, "optimizer", "lr_scheduler", "scaler"}
        others = {k: vars(v) if isinstance(v, argparse.Namespace) else v for k, v in state.items() if k not in skip}
    inner = _without_wrapper(inner)
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(inner):
        strange = [str(name) for name in inner if name not in tensors]
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise CheckpointError(
            f"{source} is not a dictionary of weights: " + (f"no tensor under {shown}" if strange else "it is empty")
        )
    return tensors, others


def _without_wrapper(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take off the 'module.' that DistributedDataParallel and timm's ModelEma put before every name, each once."""
    while state and all(isinstance(name, str) and name.startswith(_WRAPPER) for name in state):
        state = {name.removeprefix(_WRAPPER): value for name, value in state.items()}
    return state


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_ADMITTED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _unsafe_globals(path) if zipfile.is_zipfile(path) else []
        if wanted or "Unsupported global" in str(error) or "Unsupported operand" in str(error):
            names = f": {', '.join(wanted)}" if wanted else ""
            raise CheckpointError(
                f"{path} is a pickle that needs more than tensors and plain values{names}. Unpickling such things can "
                "run code, so nothing of it was loaded. If you trust its author, convert it to safetensors yourself."
            ) from None
        raise CheckpointError(f"{path} is not a checkpoint that torch can read, or only a part of one") from error
    except _BROKEN as error:
        raise CheckpointError(f"{path} is not a checkpoint that torch can read, or only a part of one") from error


def _unsafe_globals(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(_ADMITTED):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, *_BROKEN):
        return []
