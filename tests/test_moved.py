"""Every public name of the old layout is still there, or an error says what became of it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vision_ssm
from vision_ssm import moved, ops
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError
from vision_ssm.ops.dispatch import choose
from vision_ssm.tasks.classification.settings import AugmentSettings
from vision_ssm.tasks.classification.task import Classification
from vision_ssm.tasks.classification.transforms import build_train_transform
from vision_ssm.weights.files import WeightsInfo

RECORDED: dict[str, list[str]] = json.loads((Path(__file__).parent / "golden" / "public_names.json").read_text())
"""The ``__all__`` of every module at commit 780ee32, the last one of the old layout."""

ARGUMENTS = [entry for entry in moved.MOVED if "(" in entry]
NAMES = [entry for entry in moved.MOVED if entry not in ARGUMENTS]
MODULES = [entry for entry in NAMES if entry in RECORDED]
INSIDE_MODULES_GONE = [entry for entry in NAMES if entry.rpartition(".")[0] in MODULES]
ANSWERING = [entry for entry in NAMES if entry not in INSIDE_MODULES_GONE]


def find(name: str) -> Any:
    """What a dotted name stands for: a module, or something in one. Raises LookupError where it stands for nothing."""
    found: Any = vision_ssm
    place, parts = "vision_ssm", name.split(".")
    for number, part in enumerate(parts, 1):
        place += f".{part}"
        # A package may hold a function that is called like one of its modules.
        own = isinstance(found, ModuleType) and part in vars(found) and number == len(parts)
        try:
            if not own and isinstance(found, ModuleType) and is_module(place):
                found = importlib.import_module(place)
            elif part in getattr(found, "__dataclass_fields__", {}):
                found = found.__dataclass_fields__[part]
            else:
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise LookupError(name) from error
        if isinstance(found, moved.Gone):
            raise LookupError(name)
    return found


def is_module(place: str) -> bool:
    package, _, name = place.rpartition(".")
    folders = getattr(sys.modules[package], "__path__", ())
    return any((Path(folder) / f"{name}{end}").exists() for folder in folders for end in (".py", "/__init__.py"))


def exists(name: str) -> bool:
    try:
        find(name)
    except LookupError:
        return False
    return True


@pytest.mark.parametrize("entry", moved.MOVED)
def test_what_an_entry_names_is_there(entry: str) -> None:
    new = moved.MOVED[entry]
    named = re.findall(r"\b(?:\w+\.)+\w+\b", new) if " " in new else [new]
    assert [name for name in named if not exists(name)] == []


@pytest.mark.parametrize("entry", NAMES)
def test_an_entry_is_of_a_name_that_went(entry: str) -> None:
    assert not exists(entry), "take the entry out of moved.MOVED, or the old name out of the code"


@pytest.mark.parametrize("entry", ANSWERING)
def test_an_old_name_answers(entry: str) -> None:
    holder, _, name = entry.rpartition(".")
    text = moved.told(entry)
    assert text is not None
    owner = find(holder)
    if not isinstance(owner, ModuleType):
        with pytest.raises(AttributeError, match=rf"^{re.escape(entry)} is now vision_ssm\."):
            getattr(object.__new__(owner), name)
        return
    assert text.startswith((f"vision_ssm.{entry} is now vision_ssm.", f"vision_ssm.{entry} is gone: "))
    with pytest.raises(ImportError) as caught:
        exec(f"from vision_ssm.{holder} import {name}")
    assert str(caught.value) == text
    if entry in MODULES:
        with pytest.raises(ModuleNotFoundError) as caught:
            importlib.import_module(f"vision_ssm.{entry}")
    else:
        with pytest.raises(ImportError) as caught:
            getattr(owner, name)
    assert str(caught.value) == text


@pytest.mark.parametrize("module", RECORDED)
def test_every_name_of_the_old_layout_is_there_or_answered_for(module: str) -> None:
    assert module in MODULES or exists(module)
    place = moved.MOVED.get(module, module)
    lost = [
        name for name in RECORDED[module] if f"{module}.{name}" not in moved.MOVED and not exists(f"{place}.{name}")
    ]
    assert lost == []


def test_a_module_that_went_tells_of_its_names_that_went_elsewhere() -> None:
    text = (
        "vision_ssm.data.folders is now vision_ssm.data.labelled.folders; "
        "image_files is now vision_ssm.data.files.image_files"
    )
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(text)}$"):
        exec("from vision_ssm.data.folders import image_files")


def test_a_name_that_never_was_is_not_answered_for() -> None:
    with pytest.raises(AttributeError, match=r"^module 'vision_ssm\.ops' has no attribute 'residual'$"):
        _ = ops.residual  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match=r"^cannot import name 'DataConfigs'"):
        exec("from vision_ssm.training.config import DataConfigs")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'vision_ssm\.ops\.norms'$"):
        importlib.import_module("vision_ssm.ops.norms")


@pytest.mark.parametrize("old", ["cuda", "auto", torch.device("cpu")])
def test_a_device_or_backend_where_the_operator_is_now(old: Any) -> None:
    text = r"^operator must be one of scan, .* It comes first: explain\('scan', device, dtype\), choose\('scan', device"
    with pytest.raises(ConfigError, match=text):
        ops.explain(old, torch.float32)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=text):
        choose(old, torch.device("cpu"), torch.float32)


def test_arguments_that_changed() -> None:
    names, said = ("cat", "dog"), r'is gone: .*WeightsInfo\(model, options, "classification", \{"class_names": names\}'
    with pytest.raises(
        TypeError, match=rf"^WeightsInfo\(\): missing a required argument: 'task'\. \(class_names\) {said}"
    ):
        WeightsInfo(model="m", model_options={}, class_names=names, preprocessing=Preprocessing())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=rf"missing a required argument: 'preprocessing'.*{said}"):
        WeightsInfo("m", {}, names, Preprocessing())  # type: ignore
    with pytest.raises(TypeError, match=rf"^task must be the name of a task, got \('cat', 'dog'\)\. .*{said}"):
        WeightsInfo("m", {}, names, Preprocessing(), {"top1": 1.0})  # type: ignore
    with pytest.raises(TypeError, match=r"'augment'.* \(augmentation\) is gone: its name is augment"):
        build_train_transform(Preprocessing(), augmentation=AugmentSettings())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'label_smoothing'.* it takes a ClassificationSettings"):
        Classification(names, label_smoothing=0.1)  # type: ignore
    with pytest.raises(
        ConfigError, match=r"^the task classification takes its settings, a ClassificationSettings, got"
    ):
        Classification(names)  # type: ignore[arg-type]
