"""What every norm beside or within an operator is told by: its kind, and what it learns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["NORMS", "NormWeights"]

NORMS = ("rms", "layer")  # by the numbers of csrc/include/types.h


class NormWeights(NamedTuple):
    """A norm over D channels: ``kind`` 'rms' or 'layer', ``weight`` and ``bias`` [D]."""

    kind: str
    eps: float
    weight: Tensor
    bias: Tensor | None = None
