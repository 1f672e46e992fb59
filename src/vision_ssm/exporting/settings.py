"""What an export may be asked for. No torch here: the command's help lists it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["DYNAMIC", "FORMATS", "PRECISIONS", "TARGETS", "TOLERANCE", "Settings"]

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Formats, and how their files end."""

TARGETS = ("onnxruntime", "portable")
"""For whom ONNX is written: with ONNX Runtime's own operator for gated linear attention, or standard operators only."""

DYNAMIC = ("batch", "size")
"""What may be left open."""

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "int8": 0.5}
"""Largest error of an output over its largest absolute value. In INT8 the score decides: this only refuses nonsense."""

PRECISIONS = tuple(TOLERANCE)
"""float16 stores weights in half the room and computes as before; int8 computes products in whole numbers."""


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
    tolerance: float | None = None
    precision: str = "float32"
    calibrate: str | Path | None = None

    def __post_init__(self) -> None:
        check_words("format", [self.format], list(FORMATS))
        check_words("target", [self.target], TARGETS)
        check_words("dynamic", self.dynamic, DYNAMIC)
        if self.format == "torch" and "size" in self.dynamic:
            raise ConfigError("a program of torch has one size: leave size out of dynamic, or choose another format.")
        check_words("precision", [self.precision], PRECISIONS)
        if self.format == "torch" and self.precision != "float32":
            raise ConfigError(f"a program of torch is written in float32 only, got precision {self.precision!r}.")
        if (self.precision == "int8") != (self.calibrate is not None):
            raise ConfigError(
                "int8 needs a folder of images with known answers to calibrate on (calibrate, --calibrate), and no "
                f"other precision takes one, got precision {self.precision!r} and calibrate {self.calibrate!r}."
            )
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance must lie between 0 and 1, got {self.tolerance}.")

    @property
    def allowed(self) -> float:
        """The tolerance, that of the precision where none was given."""
        return TOLERANCE[self.precision] if self.tolerance is None else self.tolerance

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
