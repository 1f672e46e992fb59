from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.downsample import ConvDownsample, PatchMerging, make_downsample


def test_patch_merging_stacks_columns_first():
    merging = PatchMerging(1, 4)
    with torch.no_grad():
        merging.reduction.weight.copy_(torch.eye(4))
    x = torch.arange(24.0).reshape(1, 4, 6, 1)
    rows, columns = torch.meshgrid(torch.arange(0, 4, 2), torch.arange(0, 6, 2), indexing="ij")
    square = [x[0, rows + r, columns + c, 0] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
    torch.testing.assert_close(merging(x)[0], F.layer_norm(torch.stack(square, -1), (4,)))


@pytest.mark.parametrize("size", [(5, 7), (5, 6), (4, 7), (1, 1)])
def test_patch_merging_pads_odd_maps_at_the_bottom_and_right(size):
    merging = PatchMerging(3)
    x = torch.randn(2, *size, 3)
    padded = torch.zeros(2, -(-size[0] // 2) * 2, -(-size[1] // 2) * 2, 3)
    padded[:, : size[0], : size[1]] = x
    assert merging(x).shape == (2, padded.shape[1] // 2, padded.shape[2] // 2, 6)
    torch.testing.assert_close(merging(x), merging(padded))


@pytest.mark.parametrize(("kernel", "size"), [(2, (2, 3)), (3, (3, 4))])
def test_convolutions_on_an_odd_map(kernel, size):
    down = ConvDownsample(4, 6, kernel_size=kernel)
    x = torch.randn(1, 5, 7, 4)
    found = down(x)
    assert found.shape == (1, *size, 6)
    expected = F.conv2d(x.permute(0, 3, 1, 2), down.conv.weight, down.conv.bias, stride=2, padding=kernel - 2)
    torch.testing.assert_close(found, down.norm(expected.permute(0, 2, 3, 1)), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_done_is_told():
    with pytest.raises(ShapeError, match=r"a map of 1x6 is too small to be halved by a 2x2 convolution"):
        make_downsample("v2", 4)(torch.randn(1, 1, 6, 4))
    with pytest.raises(ConfigError, match=r"downsample must be one of v1, v2, v3, got 'v4'"):
        make_downsample("v4", 4)
    with pytest.raises(ConfigError, match="kernel_size must be 2 or 3"):
        ConvDownsample(4, kernel_size=5)
