import pytest
import torch
import torch.nn.functional as F

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers import PatchEmbed


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        ((224, 224), 16, (14, 14)),
        ((224, 224), 8, (27, 27)),
        ((384, 384), 8, (47, 47)),
        ((224, 320), 16, (14, 20)),
        ((16, 16), 16, (1, 1)),
        ((17, 16), 16, (2, 1)),
        ((225, 240), 16, (15, 15)),
        ((225, 231), 8, (28, 28)),
    ],
)
def test_grid_is_the_published_one_where_it_divides_and_rounded_up_elsewhere(size, stride, grid):
    embed = PatchEmbed(224, 16, stride, 3, 4)
    assert embed.dynamic_feat_size(size) == grid
    patches, found = embed(torch.randn(1, 3, *size))
    assert found == grid
    assert patches.shape == (1, grid[0] * grid[1], 4)


def test_padding_is_zeros_at_the_bottom_and_right():
    embed = PatchEmbed(16, 4, 4, 1, 3)
    x = torch.randn(2, 1, 13, 18)
    torch.testing.assert_close(embed(x)[0], embed(F.pad(x, (0, 2, 0, 3)))[0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 15, 40), "an image of 15x40 is smaller than a patch of 16x16"),
        (torch.zeros(1, 1, 32, 32), r"expected images \[B, 3, H, W\], got \[1, 1, 32, 32\]"),
        (torch.zeros(3, 32, 32), r"expected images \[B, 3, H, W\], got \[3, 32, 32\]"),
    ],
)
def test_unusable_images_are_refused(images, message):
    with pytest.raises(ShapeError, match=message):
        PatchEmbed(32, 16, 16, 3, 4)(images)


def test_a_strict_embedding_takes_its_own_size_only():
    embed = PatchEmbed((32, 48), 16, 16, 3, 4, strict=True)
    embed(torch.zeros(1, 3, 32, 48))
    with pytest.raises(ShapeError, match="dynamic_img_size=False"):
        embed(torch.zeros(1, 3, 48, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-224, 16, 16, 3, 4), "img_size must be a positive whole number"),
        ((8, 16, 16, 3, 4), "img_size must be at least one patch of 16 pixels"),
        ((224, 0, 16, 3, 4), "patch_size must be a positive whole number"),
        ((224, 16, 17, 3, 4), "stride must not exceed patch_size"),
        ((224, 16, 16, 0, 4), "in_chans must be positive"),
        (((224, 224, 3), 16, 16, 3, 4), "img_size must be a positive whole number or a"),
        ((224.0, 16, 16, 3, 4), "img_size must be a positive whole number or a"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PatchEmbed(*arguments)
