"""Recipes by name or by file, and their YAML. They travel inside the package, so an installed wheel has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vision_ssm.errors import ConfigError, suggestion
from vision_ssm.storage import what_else

__all__ = ["find_recipe", "list_recipes", "parse_value", "read_recipe", "write_recipe"]

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def list_recipes() -> dict[str, Path]:
    """Names of the recipes that come with the package, and their files."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe, given its name or a path.

    Raises ConfigError when it is neither, naming the nearest recipe.
    """
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if path.is_file():
            return path
        raise ConfigError(f"{path}: no such recipe file.")
    known = list_recipes()
    if str(recipe) in known:
        return known[str(recipe)]
    near = suggestion(str(recipe), known)
    raise ConfigError(f"no recipe is called {str(recipe)!r}.{near} Recipes: {', '.join(known)}.")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML 1.2's numbers: 1e-3 is one. YAML 1.1 wants 1.0e-3 and would take it for text."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes the texts that `_Loader` would take for a number."""


# Beside its own error yaml raises what Python says of numbers, dates and nesting that it cannot hold.
_NOT_YAML = (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError)

_POWER_OF_TEN = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _POWER_OF_TEN, list("-+.0123456789"))


def read_recipe(path: Path) -> dict[str, Any]:
    """The content of a recipe. Raises ConfigError when it cannot be read or is no mapping."""
    if other := what_else(path):
        raise ConfigError(f"{path}: is {other}, not a recipe file.")
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}.")
    return values


def write_recipe(values: Mapping[str, Any], *, flow: bool = False) -> str:
    """``values`` as YAML in their order; with ``flow`` in braces, over as few lines as fit."""
    style: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 110 if flow else None}
    return str(yaml.dump(dict(values), Dumper=_Dumper, default_flow_style=flow, **style))


def parse_value(text: str, key: str) -> Any:
    """One value as a recipe has it. Raises ConfigError naming ``key``."""
    try:
        return _parse(text)
    except _NOT_YAML as error:
        raise ConfigError(f"{key}: {text[:200]!r} is not a YAML value: {error}") from error


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # which is a SafeLoader
