"""Dataclasses as settings: every field knows its type, range and help text, and refuses what does not fit.

Pure Python, so that a command line can show its help without importing torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar, Union, cast

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["Section", "Setting", "describe", "differences", "from_mapping", "setting", "to_mapping"]

T = TypeVar("T")


def setting(
    default: T,
    text: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    free: bool = False,
) -> T:
    """Return a dataclass field with its help text and its range, typed as the value it holds.

    Args:
        default: the value when nothing is said.
        text: one sentence for the help and the documentation.
        above: smallest number, itself excluded. Bounds apply to each element of a tuple.
        at_least: smallest number allowed.
        at_most: largest number allowed.
        below: largest number, itself excluded.
        free: True when the value does not alter the trained weights, so a resumed run may change it.
    """
    bounds = {"above": above, "at least": at_least, "at most": at_most, "below": below}
    metadata = {"help": text, "bounds": {k: v for k, v in bounds.items() if v is not None}, "free": free}
    if isinstance(default, dict):
        content = dict(default)
        return cast(T, dataclasses.field(default_factory=lambda: dict(content), metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of the settings dataclasses: types and ranges are checked whenever one is made.

    Raises ConfigError naming the setting, what was expected and what came.
    """

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            key = self.prefix + field.name
            annotation = hints[field.name]
            try:
                value = _fit(getattr(self, field.name), annotation)
            except _MismatchError:
                raise ConfigError(
                    f"{key} must be {_spell(annotation)}, got {getattr(self, field.name)!r}."
                    f"{_nearest_choice(getattr(self, field.name), annotation)}"
                ) from None
            _check_bounds(key, value, field.metadata.get("bounds", {}))
            object.__setattr__(self, field.name, value)


class _MismatchError(Exception):
    """The value does not fit the annotation."""


def _fit(value: Any, annotation: Any) -> Any:
    """Return ``value`` as ``annotation`` wants it (a list becomes a tuple, 1 becomes 1.0), or raise."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return _fit(value, option)
            except _MismatchError:
                continue
        raise _MismatchError
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise _MismatchError
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _MismatchError
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise _MismatchError
        return tuple(_fit(item, kind) for item, kind in zip(value, kinds, strict=True))
    if origin is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return dict(value)
        raise _MismatchError
    if annotation is float:
        return _fit_float(value)
    if isinstance(value, bool) and annotation is not bool:  # bool is an int to Python, not to people
        raise _MismatchError
    if isinstance(value, annotation):
        return value
    raise _MismatchError


def _fit_float(value: Any) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-3, without a dot, as a string
        try:
            value = float(value)
        except ValueError:
            raise _MismatchError from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _MismatchError
    return float(value)


def _check_bounds(key: str, value: Any, bounds: Mapping[str, float]) -> None:
    numbers = value if isinstance(value, tuple) else (value,)
    holds = {
        "above": lambda number, bound: number > bound,
        "at least": lambda number, bound: number >= bound,
        "at most": lambda number, bound: number <= bound,
        "below": lambda number, bound: number < bound,
    }
    for number in numbers:
        if not isinstance(number, int | float):
            continue
        if not all(holds[kind](number, bound) for kind, bound in bounds.items()):
            wanted = " and ".join(f"{kind} {bound:g}" for kind, bound in bounds.items())
            raise ConfigError(f"{key} must be {wanted}, got {value!r}.")


def _spell(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{'whole numbers' if arguments[0] is int else 'numbers'}"
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "null",
    }
    return names.get(annotation, "a mapping of names to values")


def _nearest_choice(value: Any, annotation: Any) -> str:
    choices = [c for c in _literal_choices(annotation) if isinstance(c, str)]
    return suggestion(value, choices) if isinstance(value, str) and choices else ""


def _literal_choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return tuple(choice for option in typing.get_args(annotation) for choice in _literal_choices(option))


S = TypeVar("S", bound=Section)


def from_mapping(kind: type[S], values: Mapping[str, Any]) -> S:
    """Build ``kind`` and the sections inside it from nested mappings.

    Raises ConfigError for a key that no section has, naming the nearest one that exists.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown setting {kind.prefix + str(key)!r}.{_nearest_setting(str(key), kind)}")
        annotation = known[key]
        if isinstance(annotation, type) and issubclass(annotation, Section):
            if isinstance(value, annotation):
                arguments[key] = value
                continue
            if not isinstance(value, Mapping):
                names = ", ".join(f.name for f in dataclasses.fields(annotation))  # type: ignore[arg-type]
                raise ConfigError(f"{kind.prefix}{key} is a section with the settings {names}; got {value!r}.")
            arguments[key] = from_mapping(annotation, value)
        else:
            arguments[key] = value
    return kind(**arguments)


def _nearest_setting(name: str, kind: type[Section]) -> str:
    """Prefer the nearest name in the same section; at the top look through every section."""
    same = {field.name: kind.prefix + field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    leaves = {} if kind.prefix else {entry.key.rpartition(".")[2]: entry.key for entry in describe(kind)}
    for names in (same, leaves):
        near = suggestion(name, names)
        if near:
            short = near.split("'")[1]
            return near.replace(f"'{short}'", f"'{names[short]}'")
    return f" The settings here are {', '.join(same)}."


def to_mapping(section: Section) -> dict[str, Any]:
    """The section as plain nested dicts and lists, ready for YAML, JSON or a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, Section):
            return to_mapping(value)
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value

    return {f.name: plain(getattr(section, f.name)) for f in dataclasses.fields(section)}  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the help: dotted key, type in words, default, text, and whether a resumed run may change it."""

    key: str
    type: str
    default: Any
    text: str
    free: bool


def describe(kind: type[Section]) -> list[Setting]:
    """Every setting of ``kind`` and the sections inside it, in the order of definition."""
    return list(_describe(kind))


def _describe(kind: type[Section]) -> Iterator[Setting]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        annotation = hints[field.name]
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _describe(annotation)
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Setting(
            kind.prefix + field.name, _spell(annotation), default, field.metadata["help"], field.metadata["free"]
        )


def differences(kind: type[Section], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings not marked free whose values differ between two ``to_mapping`` results: key -> (old, new)."""
    changed: dict[str, tuple[Any, Any]] = {}
    for entry in describe(kind):
        section, _, name = entry.key.rpartition(".")
        before, after = (m.get(section, {}) if section else m for m in (old, new))
        if not entry.free and before.get(name, entry.default) != after.get(name, entry.default):
            changed[entry.key] = (before.get(name, entry.default), after.get(name, entry.default))
    return changed
