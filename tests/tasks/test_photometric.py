"""Colours are changed by the stated rule: within the limits, in each order, and not beyond 0..255."""

from __future__ import annotations

import colorsys
import random

import pytest
import torch

from vision_ssm.errors import ConfigError
from vision_ssm.tasks.photometric import Distortion, distorted

NOTHING = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(40, 200, (3, 8, 9), generator=generator).float()
    colours[:, 0, 0] = 0
    colours[:, 0, 1] = 100  # grey: it has no hue and no saturation
    return colours


def outcomes(limits: Distortion, count: int = 60) -> list[torch.Tensor]:
    random.seed(0)
    return [distorted(pixels(), limits) for _ in range(count)]


def hsv(colours: torch.Tensor) -> torch.Tensor:
    flat = (colours / 255).flatten(1).T.tolist()
    return torch.tensor([colorsys.rgb_to_hsv(*colour) for colour in flat], dtype=torch.float64)


def test_nothing_asked_is_nothing_done() -> None:
    assert all(torch.allclose(outcome, pixels(), atol=1e-3) for outcome in outcomes(Distortion(**NOTHING)))


def test_brightness_is_added_in_half_of_the_cases() -> None:
    shifts = [outcome - pixels() for outcome in outcomes(Distortion(**{**NOTHING, "brightness": 32.0}), 400)]
    added = torch.tensor([float(shift[0, 4, 4]) for shift in shifts])
    assert all(torch.allclose(shift[:, 4], shift[:, 4, :1].expand_as(shift[:, 4]), atol=1e-3) for shift in shifts)
    assert 0.4 < float((added.abs() > 1e-3).float().mean()) < 0.6
    assert (float(added.min()) > -32.01, float(added.max()) < 32.01) == (True, True)
    assert float(added.max() - added.min()) > 55


def test_contrast_multiplies() -> None:
    for outcome in outcomes(Distortion(**{**NOTHING, "contrast": (0.5, 0.5)})):
        ratio = outcome[:, 3] / pixels()[:, 3]
        assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), atol=1e-4)
        assert min(abs(float(ratio[0, 0]) - factor) for factor in (0.5, 1.0)) < 1e-4


def test_contrast_comes_before_or_after_the_saturation() -> None:
    # Cut off at white in between, the two orders differ: both must occur.
    limits = Distortion(**{**NOTHING, "contrast": (3.0, 3.0), "saturation": (0.5, 0.5)})
    both = [outcome for outcome in outcomes(limits) if float(outcome.max()) > 254.9]
    first = (pixels() * 3).clamp(0, 255)
    value = first.amax(0)
    before = value - (value - first) / 2
    value = pixels().amax(0)
    after = ((value - (value - pixels()) / 2) * 3).clamp(0, 255)
    kinds = [sum(torch.allclose(outcome, kind, atol=1e-2) for outcome in both) for kind in (before, after)]
    assert min(kinds) > 0


@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0])
def test_saturation_keeps_hue_and_value(factor: float) -> None:
    limits = Distortion(**{**NOTHING, "saturation": (factor, factor)})
    before, changed = hsv(pixels()), 0
    for outcome in outcomes(limits, 20):
        after = hsv(outcome)
        if torch.allclose(after, before, atol=1e-4):
            continue
        changed += 1
        torch.testing.assert_close(after[:, 2], before[:, 2], atol=1e-4, rtol=0)
        torch.testing.assert_close(after[:, 1], (before[:, 1] * factor).clamp(0, 1), atol=1e-4, rtol=0)
        turned = (after[:, 0] - before[:, 0]).abs()[before[:, 1] > 0]
        assert float(torch.minimum(turned, 1 - turned).max()) < 1e-4
    assert changed > 3


def test_hue_turns_by_the_share_of_the_circle() -> None:
    before, turned = hsv(pixels()), []
    coloured = before[:, 1] > 0.05
    for outcome in outcomes(Distortion(**{**NOTHING, "hue": 18.0}), 200):
        by = (hsv(outcome)[coloured, 0] - before[coloured, 0] + 0.5) % 1 - 0.5
        assert float(by.max() - by.min()) < 1e-3
        turned.append(float(by.mean()))
    assert max(map(abs, turned)) < 0.1001
    assert max(turned) - min(turned) > 0.17


def test_values_stay_within_their_range() -> None:
    for outcome in outcomes(Distortion(brightness=255.0, contrast=(0.0, 5.0), saturation=(0.0, 9.0), hue=90.0), 200):
        assert outcome.isfinite().all()
        assert float(outcome.min()) >= -1e-3
        assert float(outcome.max()) <= 255.001


@pytest.mark.parametrize(
    "wrong", [{"brightness": -1.0}, {"hue": 91.0}, {"contrast": (2.0, 1.0)}, {"saturation": (-1, 1)}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must"):
        Distortion(**wrong)
