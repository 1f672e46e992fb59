"""What a model costs: parameters, multiply-adds and memory, computed without running it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_ssm.analysis.cost import Cost as Cost
    from vision_ssm.analysis.cost import LayerCost as LayerCost
    from vision_ssm.analysis.cost import cost as cost

__all__ = ["Cost", "LayerCost", "cost"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.cost"), name)
