"""What the settings machinery promises of any section, on one made up here."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import Field

from vision_ssm.errors import ConfigError
from vision_ssm.settings import (
    Count,
    Positive,
    Probability,
    Section,
    describe,
    differences,
    from_mapping,
    schema,
    setting,
    to_mapping,
)


class Inner(Section):
    rate: Positive = setting(0.5, "A rate.")
    mode: Literal["slow", "fast"] | None = setting(None, "A mode.")
    pair: tuple[Count, Count] = setting((1, 2), "Two counts.")


class Outer(Section):
    needed: int = Field(description="Has no default.")
    share: Probability = setting(0.5, "A share.", free=True)
    inner: Inner = Field(default_factory=Inner)
    more: dict[str, Any] = setting({}, "Anything.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"^needed is missing: it must be a whole number\.$"),
        ({"needed": None}, r"^needed must be a whole number, got None\.$"),
        ({"needed": True}, r"^needed must be a whole number, got True\.$"),
        ({"needed": 1.0}, r"^needed must be a whole number, got 1\.0\.$"),
        ({"needed": "1"}, r"^needed must be a whole number, got '1'\.$"),
        ({"zzz": 1}, r"^unknown setting 'zzz'\. The settings here are needed, share, inner, more\.$"),
        ({"needd": 1}, r"^unknown setting 'needd'\. Did you mean 'needed'\?$"),  # not: needed is missing
        ({"needed": 1, "rat": 1}, r"^unknown setting 'rat'\. Did you mean 'inner\.rate'\?$"),
        ({"needed": 1, "share": False}, r"^share must be a number, got False\.$"),
        ({"needed": 1, "share": 2}, r"^share must be at least 0 and at most 1, got 2\.$"),
        ({"needed": 1, "inner": {"rate": float("inf")}}, r"^inner\.rate must be a number, got inf\.$"),
        (
            {"needed": 1, "inner": {"mode": "fats"}},
            r"inner\.mode must be one of slow, fast or null, got 'fats'\. Did yo",
        ),
        ({"needed": 1, "inner": {"pair": [1, 0]}}, r"^inner\.pair must be at least 1, got \[1, 0\]\.$"),
        ({"needed": 1, "inner": {"pair": [1]}}, r"^inner\.pair must be a list of 2 whole numbers, got \[1\]\.$"),
        ({"needed": 1, "inner": None}, r"^inner is a section with the settings rate, mode, pair; got None\.$"),
        ({"needed": 1, "inner": {3: 4}}, r"^unknown setting 'inner\.3'\. The settings here are rate, mode, pair\.$"),
        ({"needed": 1, "more": {3: 4}}, r"^more must be a mapping of names to values, got \{3: 4\}\.$"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, values)


def test_made_by_hand_it_refuses_in_the_same_words() -> None:
    with pytest.raises(ConfigError, match=r"^rate must be above 0, got 0\.$"):
        Inner(rate=0)
    with pytest.raises(ConfigError, match=r"^unknown setting 'rat'\. Did you mean 'rate'\?$"):
        Inner(rat=1)


def test_there_and_back() -> None:
    made = from_mapping(Outer, {"needed": 3, "share": 1, "inner": {"pair": [4, 5]}, "more": {"list": [1, [2]]}})
    assert made.inner == Inner(pair=(4, 5))
    assert isinstance(made.share, float)
    plain = to_mapping(made)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["more"] == {"list": [1, [2]]}
    assert from_mapping(Outer, plain) == made


def test_help_and_schema_tell_the_same() -> None:
    entries = describe(Outer)
    assert list(entries) == ["needed", "share", "inner.rate", "inner.mode", "inner.pair", "more"]
    pair = entries["inner.pair"]
    assert (pair.type, pair.bounds, pair.default) == ("a list of 2 whole numbers", "at least 1", [1, 2])
    assert (entries["share"].free, entries["inner.mode"].choices) == (True, ("slow", "fast"))
    found = schema(Outer)
    assert found["$schema"].endswith("2020-12/schema")
    assert (found["required"], found["additionalProperties"]) == (["needed"], False)
    rate = found["$defs"]["Inner"]["properties"]["rate"]
    assert rate == {"default": 0.5, "description": "A rate.", "exclusiveMinimum": 0, "type": "number"}


def test_differences_know_defaults_and_leave_out_what_is_free() -> None:
    old = {"needed": 1, "share": 0.1, "inner": {"rate": 0.5}}  # from before there were `mode` and `pair`
    assert differences(Outer, old, to_mapping(Outer(needed=1))) == {}
    changed = to_mapping(Outer(needed=2, inner=Inner(pair=(1, 1))))
    assert differences(Outer, old, changed) == {"needed": (1, 2), "inner.pair": ([1, 2], [1, 1])}
