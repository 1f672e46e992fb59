"""What an export may be asked for. No torch here: the command's help lists it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["DYNAMIC", "FORMATS", "TARGETS", "TOLERANCE", "Settings"]

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Formats, and how their files end."""

TARGETS = ("onnxruntime", "portable")
"""For whom ONNX is written: with ONNX Runtime's own operator for gated linear attention, or standard operators only."""

DYNAMIC = ("batch", "size")
"""What may be left open."""

TOLERANCE = 1e-4
"""Largest error of an output over its largest absolute value."""


@dataclass(frozen=True)
class Settings:
    """How a model is exported.

    Raises:
        ConfigError: an unknown word, or a number out of range.
    """

    format: str = "onnx"
    target: str = "onnxruntime"
    dynamic: tuple[str, ...] = ()
    img_size: int | tuple[int, int] | None = None
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        check_words("format", [self.format], list(FORMATS))
        check_words("target", [self.target], TARGETS)
        check_words("dynamic", self.dynamic, DYNAMIC)
        if self.format == "torch" and "size" in self.dynamic:
            raise ConfigError("a program of torch has one size: leave size out of dynamic, or choose another format.")
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance must lie between 0 and 1, got {self.tolerance}.")

    @property
    def suffix(self) -> str:
        """How files of the format end."""
        return FORMATS[self.format]


def check_words(name: str, words: Sequence[Any], allowed: Sequence[str]) -> None:
    """Raise ConfigError, with the nearest one, for a word that is not allowed."""
    for word in words:
        if word not in allowed:
            raise ConfigError(
                f"{name} must be one of {', '.join(allowed)}, got {word!r}.{suggestion(str(word), allowed)}"
            )
