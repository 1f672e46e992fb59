"""Measuring models side by side: time, peak memory, and the share of the machine's ceiling. Light to import."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_ssm.bench.measure import run_benchmark as run_benchmark
    from vision_ssm.bench.plots import draw_memory as draw_memory
    from vision_ssm.bench.plots import draw_speed as draw_speed
    from vision_ssm.bench.report import read_report as read_report
    from vision_ssm.bench.settings import PRESETS as PRESETS
    from vision_ssm.bench.settings import Settings as Settings

__all__ = ["PRESETS", "Settings", "draw_memory", "draw_speed", "read_report", "run_benchmark"]

_HOMES = {
    "PRESETS": "settings",
    "Settings": "settings",
    "draw_memory": "plots",
    "draw_speed": "plots",
    "read_report": "report",
    "run_benchmark": "measure",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
