import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.recorded import GOLDEN, fill
from vision_ssm.errors import ShapeError
from vision_ssm.layers.positions import (
    CLASS_TOKENS,
    class_indices,
    insert_rows,
    published_interpolation,
    resample_grid,
    resample_table,
    sincos_table,
    split_rows,
)


def bicubic(table, source, target):
    square = table.reshape(1, *source, -1).permute(0, 3, 1, 2)
    return F.interpolate(square, size=target, mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)


@pytest.mark.parametrize("class_token", CLASS_TOKENS)
@pytest.mark.parametrize("patches", [1, 2, 5, 196])
def test_class_rows_go_where_they_should_and_come_back(class_token, patches):
    x, rows = torch.randn(2, patches, 3), torch.randn(2, CLASS_TOKENS[class_token], 3)
    sequence = insert_rows(x, rows, class_token)
    assert torch.equal(sequence[:, list(class_indices(class_token, patches))], rows)
    back, prefix = split_rows(sequence, class_token)
    assert torch.equal(back, x)
    assert torch.equal(prefix, rows)


def test_middle_token_of_the_published_sizes():
    assert [class_indices("middle", n)[0] for n in (196, 729, 280)] == [98, 364, 140]


@pytest.mark.parametrize("target", [(14, 14), (24, 24), (20, 13), (7, 31), (1, 1)])
def test_whole_patches_are_resampled_bicubically(target):
    table = torch.randn(1, 14 * 14, 5, dtype=torch.float64)
    found = resample_grid(table, (14, 14), target, patch=16, stride=16)
    torch.testing.assert_close(found, bicubic(table, (14, 14), target))


def test_overlapping_patches_are_sampled_at_their_centres():
    # A table that is linear in the pixel coordinate stays linear in it, wherever the border does not interfere:
    # 27 patches of 16 at stride 8 over 224 pixels, then 55 over 448, the same picture at twice the size.
    rows = (torch.arange(27.0) * 8 + 8) / 224
    table = rows[:, None].expand(27, 27).reshape(1, -1, 1)
    found = resample_grid(table, (27, 27), (55, 55), patch=16, stride=8).reshape(55, 55)
    expected = (torch.arange(55.0) * 8 + 8) / 448
    torch.testing.assert_close(found[4:-4, 30], expected[4:-4], atol=1e-6, rtol=0)


def test_every_second_patch_of_a_stride_8_grid_lies_on_a_stride_16_patch():
    table = torch.randn(1, 14 * 14, 3)
    found = resample_grid(table, (14, 14), (27, 27), patch=16, stride=(16, 8)).reshape(27, 27, 3)
    torch.testing.assert_close(found[::2, ::2], table.reshape(14, 14, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("class_token", CLASS_TOKENS)
def test_class_rows_survive_resampling(class_token):
    table = torch.randn(1, 16 + CLASS_TOKENS[class_token], 3, dtype=torch.float64)
    found = resample_table(table, class_token, (4, 4), (5, 7), patch=4, stride=4)
    grid, rows = split_rows(found, class_token)
    assert torch.equal(rows, split_rows(table, class_token)[1])
    patches = split_rows(table, class_token)[0]
    torch.testing.assert_close(grid, bicubic(patches, (4, 4), (5, 7)))


def test_resampling_is_not_rounded_by_autocast_and_passes_gradients():
    table = torch.randn(1, 16, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = resample_grid(table, (4, 4), (6, 6), patch=4, stride=4)
    torch.testing.assert_close(found, bicubic(table, (4, 4), (6, 6)), atol=1e-6, rtol=1e-5)
    found.sum().backward()
    torch.testing.assert_close(table.grad.sum(), torch.tensor(3 * 36.0))


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ShapeError, match="a 4x4 grid has 16 rows, the table has 17"):
        resample_grid(torch.zeros(1, 17, 2), (4, 4), (5, 5), patch=4, stride=4)


@pytest.mark.parametrize("case", ["cls197_to_27", "cls197_to_24", "cls197_to_32", "nocls196_to_32", "nocls196_to_64"])
def test_published_interpolation(case):
    recorded = np.load(GOLDEN / "pos_embed_interp.npz")
    rows, side = (int(part) for part in case.removeprefix("nocls").removeprefix("cls").split("_to_"))
    table = torch.from_numpy(fill("pos_embed", (1, rows, 192)))
    found = published_interpolation(table, side, class_tokens=rows % 2)
    torch.testing.assert_close(found[..., ::32], torch.from_numpy(recorded[case]), atol=1e-6, rtol=1e-5)
    assert found.double().norm().item() == pytest.approx(float(recorded[f"{case}_norm"]), rel=1e-6)


def test_published_interpolation_needs_a_square():
    with pytest.raises(ShapeError, match="square grid; 15 rows remain after 1"):
        published_interpolation(torch.zeros(1, 16, 2), 3, class_tokens=1)


def test_fixed_positions_are_waves_of_the_column_and_of_the_row():
    table = sincos_table((3, 5), 8, torch.empty(0, dtype=torch.float64)).view(3, 5, 8)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        waves = [
            wave(place / 10000 ** (j / 2)) for place in (column, row) for wave in (math.sin, math.cos) for j in (0, 1)
        ]
        torch.testing.assert_close(table[row, column], torch.tensor(waves, dtype=torch.float64))
