"""What models cost, computed without running them, what data hold, and what this machine offers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_ssm.analysis.data_check import check_data as check_data
    from vision_ssm.analysis.machine import environment as environment
    from vision_ssm.analysis.model_cost import Cost as Cost
    from vision_ssm.analysis.model_cost import LayerCost as LayerCost
    from vision_ssm.analysis.model_cost import cost as cost
    from vision_ssm.analysis.table import model_table as model_table

__all__ = ["Cost", "LayerCost", "check_data", "cost", "environment", "model_table"]

_HOMES = {
    "Cost": "model_cost",
    "LayerCost": "model_cost",
    "check_data": "data_check",
    "cost": "model_cost",
    "environment": "machine",
    "model_table": "table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
