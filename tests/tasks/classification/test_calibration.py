"""Calibration, counted by hand and against the definition."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vision_ssm.tasks.classification.calibration import BINS, calibration


def test_by_hand() -> None:
    found = calibration([0.5, 0.52, 0.9, 0.98, 1.0, 0.0], [True, False, True, True, False, False])
    filled = {round(row.upper * BINS): row for row in found.bins if row.images}
    assert {at: row.images for at, row in filled.items()} == {1: 1, 8: 2, 14: 1, 15: 2}
    assert (filled[8].confidence, filled[8].accuracy) == (pytest.approx(0.51), 0.5)
    assert found.ece == pytest.approx((2 * 0.01 + 0.1 + 2 * (0.99 - 0.5) + 0) / 6)


def test_against_the_definition() -> None:
    numbers = np.random.default_rng(0)
    sure = numbers.random(500)
    right = numbers.random(500) < sure**2
    expected = 0.0
    for index in range(BINS):
        inside = (sure > index / BINS) & (sure <= (index + 1) / BINS)
        expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration(sure.tolist(), right.tolist()).ece == pytest.approx(expected)


def test_of_nothing() -> None:
    found = json.loads(json.dumps(calibration([], []).to_dict(), allow_nan=False))
    assert found["ece"] is None
    assert [row["images"] for row in found["bins"]] == [0] * BINS
