"""Checks of options that layers and models share: errors say what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable

from vision_ssm import moved
from vision_ssm.errors import ConfigError, suggestion

__all__ = [
    "check_choice",
    "check_count",
    "check_flags",
    "check_rates",
    "check_ratio",
    "checked_inner",
]

moved.answer(__name__)


def check_choice(option: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest name, unless ``value`` is one of ``allowed``."""
    names = list(allowed)
    if value not in names:
        shown = ", ".join(name or "''" for name in names)
        raise ConfigError(f"{option} must be one of {shown}, got {value!r}.{suggestion(str(value), names)}")


def check_count(option: str, value: object, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{option} must be a whole number of at least {least}, got {value!r}")


def check_flags(**flags: object) -> None:
    """Raise ConfigError unless every flag is True or False: any text would count as true."""
    for option, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{option} must be True or False, got {value!r}")


def check_rates(**rates: object) -> None:
    """Raise ConfigError unless every rate is in [0, 1)."""
    for option, rate in rates.items():
        if not 0 <= _number(option, rate) < 1:
            raise ConfigError(f"{option} must be in [0, 1), got {rate!r}")


def check_ratio(option: str, ratio: object, channels: int) -> None:
    """Raise ConfigError unless ``ratio`` is 0 or leaves at least one of ``channels``."""
    value = _number(option, ratio)
    if value and value * channels < 1:
        raise ConfigError(f"{option} must be 0 (none) or leave at least one channel of {channels}, got {ratio!r}")


def checked_inner(channels: int, ratio: object, states: object) -> int:
    """Return the inner width ``ratio`` * ``channels`` of a scan with so many states per channel.

    Raises:
        ConfigError: no channels are left, or the states are no positive whole number.
    """
    inner = int(_number("ssm_ratio", ratio) * channels)
    if inner < 1:
        raise ConfigError(f"ssm_ratio={ratio!r} leaves no inner channels of {channels}; it must be positive")
    check_count("d_state", states)
    return inner


def _number(option: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{option} must be a finite number, got {value!r}")
    return value
