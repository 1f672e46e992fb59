"""Whether a run's state is what was written: a digest over its content, and what each part of it must be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vision_ssm.checkpoints.tensors import not_plain

__all__ = ["fault", "state_digest"]

_COUNTERS = ("epoch", "step", "update", "best_epoch")


def state_digest(state: Mapping[str, Any]) -> str:
    """Return a digest of names, types, numbers and every bit of every tensor, wherever the tensors lie."""
    running = hashlib.blake2b(digest_size=32)
    _feed(running, state)
    return running.hexdigest()


def _feed(running: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        running.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        running.update(content.numpy())
    elif isinstance(value, Mapping):
        running.update(f"mapping {len(value)}\n".encode())
        for key, inner in value.items():
            _feed(running, key)
            _feed(running, inner)
    elif isinstance(value, list | tuple):
        running.update(f"list {len(value)}\n".encode())
        for inner in value:
            _feed(running, inner)
    else:
        text = repr(value)
        running.update(f"{type(value).__name__} {len(text)} {text}\n".encode("utf-8", "surrogatepass"))


def fault(state: Mapping[str, Any], *, hollow: bool = False) -> str | None:
    """Say which part of a state is not what it must be; None if all are. A hollow state has shapes for tensors."""
    weights = {"model": state["model"], **({} if state["ema"] is None else {"ema": state["ema"]})}
    for part, tensors in weights.items():
        if not _is_mapping(tensors) or not tensors or not all(isinstance(x, Tensor) for x in tensors.values()):
            return f"its {part} must be tensors by their names"
        stored = {} if hollow else tensors
        strange = next((f"{name} is {how}" for name, x in stored.items() if (how := not_plain(x))), None)
        if strange:
            return f"in its {part}, {strange}"
    optimizer = state["optimizer"]
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("state"), Mapping):
        return "its optimizer must have a state"
    groups = optimizer.get("param_groups")
    if not isinstance(groups, list) or not all(_is_mapping(group) for group in groups):
        return "its optimizer must have param_groups"
    for part in ("scaler", "progress", "config", "data"):
        if not _is_mapping(state[part]):
            return f"its {part} must be values by their names"
    counts = {name: value for name, value in state["progress"].items() if name in _COUNTERS}
    counts |= {"processes": state["processes"], "log_bytes": state["log_bytes"]}
    for name, value in counts.items():
        if type(value) is not int or value < (name == "processes"):
            return f"its {name} must be a count, got {str(value)[:50]!r}"
    return None


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
