"""What an export may be asked for. No torch here: the command's help lists it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["DYNAMIC", "FORMATS", "OF_TORCH", "PRECISIONS", "TARGETS", "TARGETS_OF", "TOLERANCE", "Settings"]

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "aoti": ".pt2"}
"""Formats, and how their files end."""

TARGETS_OF = {
    "onnx": ("onnxruntime", "portable"),
    "openvino": ("portable",),
    "torch": ("portable",),
    "aoti": ("vision-ssm", "portable"),
}
"""For whom a format is written, by default for the first: with the operators of ONNX Runtime or of this library, which
have to be there then, or with those of the format alone."""

TARGETS = tuple(dict.fromkeys(target for targets in TARGETS_OF.values() for target in targets))

OF_TORCH = ("torch", "aoti")
"""Formats of one size, in float32 only."""

DYNAMIC = ("batch", "size")
"""What may be left open."""

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "int8": 0.5}
"""Largest error of an output over its largest absolute value. In INT8 the score decides: this only refuses nonsense."""

PRECISIONS = tuple(TOLERANCE)
"""float16 stores weights in half the room and computes as before; int8 computes products in whole numbers."""


@dataclass(frozen=True)
class Settings:
    """How a model is exported; without a target for the first of the format.

    Raises:
        ConfigError: an unknown word, or a number out of range.
    """

    format: str = "onnx"
    target: str = ""
    dynamic: tuple[str, ...] = ()
    img_size: int | tuple[int, int] | None = None
    tolerance: float | None = None
    precision: str = "float32"
    calibrate: str | Path | None = None

    def __post_init__(self) -> None:
        check_words("format", [self.format], list(FORMATS))
        if not self.target:
            object.__setattr__(self, "target", TARGETS_OF[self.format][0])
        check_words(f"target of {self.format}", [self.target], TARGETS_OF[self.format])
        check_words("dynamic", self.dynamic, DYNAMIC)
        if self.format in OF_TORCH and "size" in self.dynamic:
            raise ConfigError("a program of torch has one size: leave size out of dynamic, or choose another format.")
        check_words("precision", [self.precision], PRECISIONS)
        if self.format in OF_TORCH and self.precision != "float32":
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
