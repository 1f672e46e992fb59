"""Settings: pydantic models that say of every value its type, range and meaning, and whose errors are ours.

A `Section` refuses what does not fit with a ConfigError that names the key, what was expected and what came. The JSON
schema of a section is the one description that the help, the messages and editors share. No torch here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self, TypeVar, cast

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema

from vision_ssm.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # not public under its name

__all__ = [
    "Count",
    "Fraction",
    "Natural",
    "NotNegative",
    "OpenFraction",
    "Positive",
    "Probability",
    "Section",
    "Setting",
    "Share",
    "describe",
    "differences",
    "from_mapping",
    "schema",
    "setting",
    "to_mapping",
]

Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Ge(0), Le(1)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1)]

T = TypeVar("T")


def setting(default: T, text: str, *, free: bool = False) -> T:
    """Return a field of a `Section` with its help text, typed as the value it holds.

    Args:
        default: the value when nothing is said.
        text: one sentence for the help, the schema and the documentation.
        free: True when the value does not alter the trained weights, so a resumed run may change it.
    """
    field: T = Field(default, description=text, json_schema_extra={_FREE: True} if free else None)
    return field


_FREE = "x-free-on-resume"


class _Refusing(ModelMetaclass):
    """Makes ``Section(...)`` raise ConfigError, as everything on purpose in this library does."""

    def __call__(cls, **values: Any) -> Any:
        kind = cast(Any, cls).kind_for(values)
        try:
            return super(_Refusing, kind).__call__(**values)
        except ValidationError as error:
            _refuse(error, kind, values)


class Section(BaseModel, metaclass=_Refusing):
    """Base of the settings: immutable, strict, without unknown keys.

    Strict means that True is no number and 1.5 no whole number; a whole number is a number, though, and a list serves
    as a tuple, since YAML and JSON have no other.

    Raises ConfigError naming the setting, what was expected and what came.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def kind_for(cls, values: Mapping[str, Any]) -> type[Self]:
        """The class that ``values`` are for, where it depends on them."""
        return cls

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show what is not the default: of some ninety values those that somebody chose."""
        for name, value in super().__repr_args__():
            field = type(self).model_fields.get(str(name))
            if field is None or value != field.get_default(call_default_factory=True):
                yield name, value

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {str(key): _as_tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


S = TypeVar("S", bound=Section)


def from_mapping(kind: type[S], values: Mapping[str, Any]) -> S:
    """Build ``kind`` and the sections inside it from nested mappings.

    Raises ConfigError for a value that does not fit, or for a key that no section has, naming the nearest one.
    """
    kind = kind.kind_for(values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        _refuse(error, kind, values)


def to_mapping(section: Section) -> dict[str, Any]:
    """The section as plain nested dicts and lists, ready for YAML, JSON or a checkpoint."""
    plain: dict[str, Any] = section.model_dump(mode="json")
    return plain


# ------------------------------------------------------------------------------------------------------- the schema
class _WithoutTitles(GenerateJsonSchema):
    """pydantic would give every setting its own name in capitals as a title."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@functools.cache
def schema(kind: type[Section]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``kind``: types, ranges, defaults and help texts. Do not change it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **kind.model_json_schema(schema_generator=_WithoutTitles),
    }


@dataclass(frozen=True)
class Setting:
    """One line of the help: dotted key, type in words, default, text, and whether a resumed run may change it.

    Attributes:
        bounds: the range in words, such as "at least 0 and below 1"; empty where there is none.
        choices: the names to choose from; empty where the value is free.
    """

    key: str
    type: str
    default: Any
    text: str
    free: bool
    bounds: str
    choices: tuple[str, ...]


@functools.cache
def describe(kind: type[Section]) -> dict[str, Setting]:
    """Every setting of ``kind`` and of the sections inside it by its dotted key, in the order of definition."""
    whole = schema(kind)
    return {entry.key: entry for entry in _describe(whole, "", whole.get("$defs", {}))}


def _describe(section: Mapping[str, Any], prefix: str, definitions: Mapping[str, Any]) -> Iterator[Setting]:
    for name, field in section["properties"].items():
        if "$ref" in field:
            yield from _describe(definitions[field["$ref"].rpartition("/")[2]], f"{prefix}{name}.", definitions)
            continue
        limits = {kind: limit for part in _parts(field) for kind, limit in part.items() if kind in _BOUNDS}
        yield Setting(
            key=prefix + name,
            type=_in_words(field),
            default=field.get("default"),
            text=field.get("description", ""),
            free=field.get(_FREE, False),
            bounds=" and ".join(f"{words} {limits[kind]:g}" for kind, words in _BOUNDS.items() if kind in limits),
            choices=tuple(choice for part in _parts(field) for choice in part.get("enum", ())),
        )


_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below"}
_NAMES = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "null": "null",
    "object": "a mapping of names to values",
}


def _in_words(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_in_words(option) for option in field["anyOf"])
    if "enum" in field:
        return "one of " + ", ".join(str(choice) for choice in field["enum"])
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        count = f"{len(items)} " if "prefixItems" in field else ""
        numbers = {"integer": "whole numbers", "number": "numbers"}
        return f"a list of {count}{numbers.get(items[0].get('type'), 'values')}"
    return _NAMES.get(field.get("type", ""), "a value")


def _parts(field: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema of a setting, of its alternatives and of its elements."""
    yield field
    for inner in (*field.get("anyOf", ()), *field.get("prefixItems", ()), field.get("items")):
        if isinstance(inner, Mapping):
            yield from _parts(inner)


# ------------------------------------------------------------------------------------------------------- the errors
def _refuse(error: ValidationError, kind: type[Section], values: Mapping[str, Any]) -> NoReturn:
    """Raise the first fault in our words. A misspelt key goes first: it may be why another one is missing."""
    faults = error.errors(include_url=False)
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    first = (unknown or faults)[0]
    path = _path(kind, first["loc"])
    if unknown:
        raise ConfigError(f"unknown setting {'.'.join(path)!r}.{_nearest_setting(path, kind)}") from None
    if "error" in first.get("ctx", {}):  # raised by a check of the section's own, which names what it is about
        raise ConfigError(str(first["ctx"]["error"])) from None
    key = ".".join(path)
    missing = first["type"] == "missing" and len(first["loc"]) == len(path)  # and not an element of a list
    entry = describe(_section(kind, path[:-1])).get(path[-1])
    if entry is None:
        what = f"{key} is a section with the settings {', '.join(_section(kind, path).model_fields)}"
        raise ConfigError(f"{what}; {'it is missing' if missing else f'got {_value(values, path)!r}'}.") from None
    if missing:
        raise ConfigError(f"{key} is missing: it must be {entry.type}.") from None
    value = _value(values, path)
    outside = any(fault["type"].startswith(_OUT_OF_RANGE) for fault in faults if _path(kind, fault["loc"]) == path)
    wanted = entry.bounds if outside else entry.type
    near = suggestion(value, entry.choices) if isinstance(value, str) else ""
    raise ConfigError(f"{key} must be {wanted}, got {_as_list(value)!r}.{near}") from None


_OUT_OF_RANGE = ("greater_than", "less_than")


def _path(kind: type[Section], location: Sequence[str | int]) -> list[str]:
    """The names down to a setting; what pydantic says beyond (a type of a union, an index) is left out."""
    path = []
    for part in location:
        path.append(str(part))
        inner = _inner(kind, str(part))
        if inner is None:
            break
        kind = inner
    return path


def _inner(kind: type[Section], name: str) -> type[Section] | None:
    field = kind.model_fields.get(name)
    found = field.annotation if field is not None else None
    return found if isinstance(found, type) and issubclass(found, Section) else None


def _section(kind: type[Section], path: Sequence[str]) -> type[Section]:
    for name in path:
        kind = _inner(kind, name) or kind
    return kind


def _value(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values[name] if isinstance(values, Mapping) else getattr(values, name)
    return values


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _nearest_setting(path: Sequence[str], kind: type[Section]) -> str:
    """Prefer the nearest name in the same section; at the top look through every section."""
    *sections, name = path
    prefix = "".join(f"{section}." for section in sections)
    same = {field: prefix + field for field in _section(kind, sections).model_fields}
    leaves = {} if sections else {key.rpartition(".")[2]: key for key in describe(kind)}
    for names in (same, leaves):
        near = suggestion(name, names)
        if near:
            short = near.split("'")[1]
            return near.replace(f"'{short}'", f"'{names[short]}'")
    return f" The settings here are {', '.join(same)}."


def differences(kind: type[Section], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings not marked free whose values differ between two ``to_mapping`` results: key -> (old, new).

    A setting that ``old`` does not have yet had its default.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for key, entry in describe(kind).items():
        before, after = (_get(values, key, entry.default) for values in (old, new))
        if not entry.free and before != after:
            changed[key] = before, after
    return changed


def _get(values: Any, key: str, default: Any) -> Any:
    for name in key.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return default
        values = values[name]
    return values
