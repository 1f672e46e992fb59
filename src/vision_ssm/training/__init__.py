"""Training: one engine for every task, described by a typed configuration.

``train(config)`` runs, ``estimate(config)`` tells what it would cost. Both are loaded on first use, so that the
configuration and its help need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vision_ssm.training.config import TrainConfig

if TYPE_CHECKING:
    from vision_ssm.training.dry_run import estimate as estimate
    from vision_ssm.training.events import TrainResult as TrainResult
    from vision_ssm.training.folds import FoldsResult as FoldsResult
    from vision_ssm.training.folds import train_folds as train_folds
    from vision_ssm.training.run import train as train

__all__ = ["FoldsResult", "TrainConfig", "TrainResult", "estimate", "train", "train_folds"]

_HOMES = {
    **{"train": "run", "estimate": "dry_run", "DryRun": "dry_run", "TrainResult": "events"},
    **{"train_folds": "folds", "FoldsResult": "folds"},
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
