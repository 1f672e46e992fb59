"""Rows of a resized map are those of the whole, whatever is asked for; and a closed form."""

import pytest
import torch
import torch.nn.functional as F

from vision_ssm.layers.resize import resize, resize_rows, source_rows


@pytest.mark.parametrize("height", [1, 2, 5, 16])
@pytest.mark.parametrize("resized", [1, 3, 5, 7, 16, 33])
def test_rows_are_those_of_the_whole(height: int, resized: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, 6, dtype=torch.float64)
    whole = F.interpolate(x, (resized, 9), mode="bilinear", align_corners=False)
    for start in range(resized):
        for stop in range(start + 1, resized + 1):
            low, high = source_rows(start, stop, height, resized)
            assert 0 <= low < high <= height
            assert high - low <= (stop - start) * max(height / resized, 1) + 3
            found = resize_rows(x[:, :, low:high], (resized, 9), start, stop, top=low, height=height)
            torch.testing.assert_close(found, whole[:, :, start:stop])
            torch.testing.assert_close(resize_rows(x, (resized, 9), start, stop), whole[:, :, start:stop])


def test_a_ramp_stays_one() -> None:
    x = torch.arange(4.0).view(1, 1, 4, 1)
    assert resize(x, (8, 1)).flatten().tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_a_map_of_that_size_is_handed_on() -> None:
    x = torch.randn(1, 2, 4, 5)
    assert resize(x, (4, 5)) is x
