"""State-space vision backbones.

Importing this is cheap and changes nothing but two things: the models are registered with timm, at once if timm is
already imported, otherwise as soon as it is; and imports of names that moved say where to (`vision_ssm.moved`).
torch and timm load when one of the names below is first used, and a room (``vision_ssm.ops``) when it is first named.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vision_ssm import moved

if TYPE_CHECKING:
    from vision_ssm import analysis as analysis
    from vision_ssm import bench as bench
    from vision_ssm import checkpoints as checkpoints
    from vision_ssm import data as data
    from vision_ssm import errors as errors
    from vision_ssm import exporting as exporting
    from vision_ssm import inference as inference
    from vision_ssm import layers as layers
    from vision_ssm import models as models
    from vision_ssm import ops as ops
    from vision_ssm import tasks as tasks
    from vision_ssm import training as training
    from vision_ssm import weights as weights
    from vision_ssm.analysis import cost as cost
    from vision_ssm.exporting.exports import export as export
    from vision_ssm.inference.evaluate import evaluate as evaluate
    from vision_ssm.inference.features import features as features
    from vision_ssm.inference.jobs.evaluation import evaluate_in_shards as evaluate_in_shards
    from vision_ssm.inference.jobs.job import run_job as run_job
    from vision_ssm.inference.predict import predict as predict
    from vision_ssm.inference.sample import sample as sample
    from vision_ssm.models.registry import create_model as create_model
    from vision_ssm.models.registry import list_models as list_models
    from vision_ssm.ops import selective_scan as selective_scan
    from vision_ssm.training import train as train
    from vision_ssm.weights.opening import open_model as load_model

__all__ = [
    "cost",
    "create_model",
    "evaluate",
    "evaluate_in_shards",
    "export",
    "features",
    "list_models",
    "load_model",
    "predict",
    "run_job",
    "sample",
    "selective_scan",
    "train",
]

_HOMES = {
    "cost": ("analysis", "cost"),
    "create_model": ("models.registry", "create_model"),
    "evaluate": ("inference.evaluate", "evaluate"),
    "evaluate_in_shards": ("inference.jobs.evaluation", "evaluate_in_shards"),
    "export": ("exporting.exports", "export"),
    "features": ("inference.features", "features"),
    "list_models": ("models.registry", "list_models"),
    "load_model": ("weights.opening", "open_model"),
    "predict": ("inference.predict", "predict"),
    "run_job": ("inference.jobs.job", "run_job"),
    "sample": ("inference.sample", "sample"),
    "selective_scan": ("ops", "selective_scan"),
    "train": ("training", "train"),
}
_ROOMS = (
    *(
        "analysis",
        "bench",
        "checkpoints",
        "data",
        "errors",
        "exporting",
        "inference",
        "layers",
        "models",
        "ops",
        "tasks",
    ),
    *("training", "weights"),
)
_REGISTRATION = "vision_ssm.models.registration"


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        from importlib.metadata import version  # a third of this import's time

        return version("vision-ssm")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


class _RegisterAfterTimm(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Steps aside for the import of timm and registers the models when it is done."""

    def __init__(self) -> None:
        self.loader: importlib.abc.Loader | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec) if self.loader else None

    def exec_module(self, module: ModuleType) -> None:
        if self.loader is None or module.__spec__ is None:
            raise ImportError("timm was found without a loader")
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module(_REGISTRATION)


sys.meta_path.append(moved.Finder())

if "timm" in sys.modules:
    importlib.import_module(_REGISTRATION)
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
