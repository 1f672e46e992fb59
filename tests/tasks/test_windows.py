"""Windows: what a run sets, and what a call asks for instead."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vision_ssm.errors import ConfigError
from vision_ssm.tasks.windows import WindowOptions, WindowSettings, chosen


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ({}, {}, (None, None)),
        ({"window": 64, "stride": 32}, {}, (64, 32)),
        ({"window": 64, "stride": 32}, {"stride": 16}, (64, 16)),
        ({"window": 64, "stride": 32}, {"window": 48}, (48, None)),  # a stride belongs to its window
        ({"window": 64, "stride": 32}, {"window": "none"}, (None, None)),
        ({"window": "none"}, {"window": 48, "stride": 40}, (48, 40)),
    ],
)
def test_what_is_asked_for_goes_before_what_was_set(own, asked, expected):
    assert chosen(WindowOptions(**asked), WindowSettings(**own)) == expected


@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        ({}, {"stride": 8}, "stride is the distance of windows, got 8 without a window"),
        ({"window": 64}, {"window": "none", "stride": 8}, "got 8 without a window"),
        ({"window": 64}, {"stride": 65}, "stride must not be larger than window, got 65 and 64"),
        ({"window": 64}, {"window": 32, "stride": 40}, "stride must not be larger than window, got 40 and 32"),
    ],
)
def test_a_stride_goes_with_a_window_that_it_does_not_exceed(own, asked, message):
    with pytest.raises(ConfigError, match=message):
        chosen(WindowOptions(**asked), WindowSettings(**own))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"stride": 8}, "test.stride is the distance of windows, got 8 without test.window"),
        ({"window": 8, "stride": 9}, "test.stride must not be larger than test.window, got 9 and 8"),
    ],
)
def test_settings_that_leave_pixels_out(own, message):
    with pytest.raises((ConfigError, ValidationError), match=message):
        WindowSettings(**own)
