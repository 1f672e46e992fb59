"""Whether a classifier is right as often as it is sure: the expected calibration error and its bins.

    ECE = sum over bins of n_b / n · |accuracy_b - confidence_b|

with bins of equal width over the probability of the predicted class (Guo et al., arXiv:1706.04599, equation 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["BINS", "Bin", "Calibration", "calibration"]

BINS = 15
"""As in the paper."""


class Bin(NamedTuple):
    """Guesses whose probability lies in (lower, upper]: how many, their mean probability, and the share of right ones.

    The last two are nan where there are none. The first bin holds 0 as well.
    """

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The bins, and the expected calibration error in [0, 1]; nan without a guess."""

    bins: tuple[Bin, ...]
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"ece", "bins": [{"lower", "upper", "images", "confidence", "accuracy"}]}``; None for nan."""
        rows = [{key: _or_none(value) for key, value in row._asdict().items()} for row in self.bins]
        return {"ece": _or_none(self.ece), "bins": rows}


def calibration(probabilities: Sequence[float], right: Sequence[bool]) -> Calibration:
    """Sort guesses, each with its probability in [0, 1] and whether it was right, into `BINS` bins of equal width."""
    probability, hits = np.asarray(probabilities, np.float64), np.asarray(right, np.float64)
    at = np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
    count = np.bincount(at, minlength=BINS)
    some = np.maximum(count, 1)
    confidence = np.bincount(at, weights=probability, minlength=BINS) / some
    accuracy = np.bincount(at, weights=hits, minlength=BINS) / some
    ece = float((count * np.abs(accuracy - confidence)).sum() / count.sum()) if count.any() else math.nan
    bins = tuple(
        Bin(index / BINS, (index + 1) / BINS, int(n), float(sure), float(hit)) if n else
        Bin(index / BINS, (index + 1) / BINS, 0, math.nan, math.nan)
        for index, (n, sure, hit) in enumerate(zip(count, confidence, accuracy, strict=True))
    )  # fmt: skip
    return Calibration(bins, ece)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
