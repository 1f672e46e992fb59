"""What a file may say of a model: a name that is registered, and options of the model's own class in sane ranges.

A weights file may come from anybody. Handed to timm as they are, its options could name an address to fetch, a local
file to open or a folder to write to, and its numbers could take all memory before a shape is compared.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

import timm
import torch
from pydantic import TypeAdapter, ValidationError
from timm.models import build_model_with_cfg
from torch import nn

from vision_ssm.errors import ConfigError, suggestion
from vision_ssm.families import FAMILIES, named
from vision_ssm.models.denoisers import DENOISERS, class_of
from vision_ssm.models.listing import WHOLE
from vision_ssm.models.registry import is_ours, require_model
from vision_ssm.models.variant import all_variants

__all__ = ["check_described", "without_sources"]

LARGEST = 2**20
"""Of whole numbers: wider, larger or of more classes is no model that this library could run."""

_MOST_PARTS = 1024  # layers or blocks
_LONGEST = 1000  # of a list or a text
_DEEPEST = 3  # of lists in lists

# Where weights come from, and what else timm's builder takes beside a model's own options.
_OF_TIMM = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters} | {
    "pretrained",
    "pretrained_custom_load",
    "pretrained_model_args",
    "features_only",
    "feature_cls",
    "out_indices",
}
_SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_model_args"} | {
    "checkpoint_path",
    "cache_dir",
}
_NOT_PLAIN = {"self", "cfg", "args", "kwargs", "device", "dtype"}  # of the classes in timm
_COUNTS = ("depth", "layer", "block")  # in the names of options that say how many parts there are


def without_sources(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without those that say where weights came from, which a file of weights has no use for."""
    return {name: value for name, value in options.items() if name not in _SOURCES}


def check_described(name: str, options: Mapping[str, Any], tensors: int) -> None:
    """Check what a file says of its model before anything of it is built.

    Args:
        name: of the model. Ours, or plainly registered with timm; no address and no path.
        options: plain JSON values.
        tensors: how many the file has: the model cannot have more parts.

    Raises:
        ConfigError: an unknown name, or an option that the model's class does not have, or of another type or range.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"{name!r} is no registered model's name; a file may give no address and no path.")
    require_model(name)
    model_class = _class_of(name)
    known = _parameters(model_class) | set(WHOLE[name].options_of_heads() if name in WHOLE else ())
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"{name} has no option {option!r} that a file may set.{suggestion(option, known)}")
        largest = min(tensors, _MOST_PARTS) if any(word in option for word in _COUNTS) else LARGEST
        _check_range(option, value, largest)
        if is_ours(name):
            _check_type(model_class, option, value)


def _class_of(name: str) -> type[nn.Module]:
    """The class of the model; of one with heads, that of its backbone."""
    if name in DENOISERS:
        return class_of(name)
    name = WHOLE[name].backbone if name in WHOLE else name
    if is_ours(name):
        row = all_variants()[name.partition(".")[0]]
        family = next(family for family in FAMILIES if row in named(family.variants).VARIANTS)
        found: type[nn.Module] = named(family.model)
        return found
    with torch.device("meta"):  # the model as timm has it, without memory for its numbers
        return type(timm.create_model(name))


def _parameters(model_class: type[nn.Module]) -> set[str]:
    """Names of the options of a class, and of those below it that hand theirs on."""
    names: set[str] = set()
    for each in model_class.__mro__:
        if "__init__" not in each.__dict__ or each is nn.Module:
            continue
        parameters = inspect.signature(each.__dict__["__init__"]).parameters
        names |= set(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names - _OF_TIMM - _NOT_PLAIN


def _check_range(option: str, value: object, largest: int, depth: int = 0) -> None:
    if isinstance(value, list | tuple):
        if len(value) > _LONGEST or depth >= _DEEPEST:
            raise ConfigError(f"{option} is a list that is too long or too deep for an option of a model")
        for item in value:
            _check_range(option, item, largest, depth + 1)
        if depth == 0 and _sum(value) > largest:
            raise ConfigError(f"{option} must add up to at most {largest} in this file, got {_sum(value)}")
    elif isinstance(value, int):
        if not -LARGEST <= value <= largest:
            raise ConfigError(f"{option} must be at most {largest} in this file, got {str(value)[:30]}")
    elif isinstance(value, float):
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise ConfigError(f"{option} must be a finite number of at most {LARGEST}, got {value!r}")
    elif value is not None and not (isinstance(value, str) and len(value) <= _LONGEST):
        raise ConfigError(f"{option} must be a number, a short text or a list of them, got {type(value).__name__}")


def _sum(value: object) -> int:
    return sum(map(_sum, value)) if isinstance(value, list | tuple) else abs(value) if isinstance(value, int) else 0


def _check_type(model_class: type[nn.Module], option: str, value: object) -> None:
    kind = typing.get_type_hints(model_class.__init__)[option]
    try:
        TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        words = str(inspect.signature(model_class).parameters[option].annotation)
        raise ConfigError(f"{option} must be of type {words}, got {value!r}") from error
