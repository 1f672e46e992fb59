"""Windows that images are cut into: what a run sets, and what one call asks for instead. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from vision_ssm.errors import ConfigError
from vision_ssm.settings import Count, Section, setting

__all__ = ["WindowOptions", "WindowSettings", "chosen"]


class WindowSettings(Section):
    """How a run cuts images of any size, kept with its weights."""

    window: Count | None = setting(None, "Side of the windows that images are cut into; null or none takes them whole.")
    stride: Count | None = setting(None, "Pixels between windows; null takes two thirds of the window.")

    @field_validator("window", mode="before")
    @classmethod
    def _none_is_a_word(cls, window: object) -> object:
        return None if window == "none" else window

    @model_validator(mode="after")
    def _windows_meet(self) -> Self:
        if self.stride is not None and self.window is None:
            raise ConfigError(f"test.stride is the distance of windows, got {self.stride} without test.window.")
        if self.stride is not None and self.window is not None and self.stride > self.window:
            raise ConfigError(
                f"test.stride must not be larger than test.window, got {self.stride} and {self.window}: pixels between "
                "the windows would be left out."
            )
        return self


class WindowOptions(Section):
    """What a prediction or an evaluation may be asked for instead."""

    window: Count | Literal["none"] | None = setting(
        None, "Side of the windows that images are cut into, or none; null as in training."
    )
    stride: Count | None = setting(None, "Pixels between windows; null takes two thirds of the window.")


def chosen(asked: WindowOptions, own: WindowSettings) -> tuple[int | None, int | None]:
    """Return window and stride, (None, None) for whole images.

    Raises:
        ConfigError: a stride is asked for where there is no window, or that is larger than it.
    """
    if asked.window == "none" or (asked.window is None and own.window is None):
        if asked.stride is not None:
            raise ConfigError(f"stride is the distance of windows, got {asked.stride} without a window.")
        return None, None
    window = own.window if asked.window is None else asked.window
    stride = own.stride if asked.window is None and asked.stride is None else asked.stride
    if stride is not None and window is not None and stride > window:
        raise ConfigError(
            f"stride must not be larger than window, got {stride} and {window}: pixels between the windows would be "
            "left out."
        )
    return window, stride
