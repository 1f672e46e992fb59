"""A model in a line: what ``print(model)`` begins with."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["in_words"]


def in_words(model: nn.Module) -> str:
    """Return the name that a model was built by, where it has one, its parameters, and how many classes it tells."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count:,}"
    told = f"{model.num_classes} classes" if getattr(model, "num_classes", 0) else "no classifier"
    name = config.get("architecture")
    return ", ".join([*([name] if name else []), f"{size} parameters", told])
