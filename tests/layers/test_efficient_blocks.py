from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models._efficientnet_blocks import InvertedResidual as TimmInvertedResidual
from timm.models._efficientnet_blocks import SqueezeExcite as TimmSqueezeExcite
from torch import nn

from vision_ssm.errors import ConfigError
from vision_ssm.layers.efficient_blocks import DualBranchBlock, InvertedResidual, PointwiseConv, SqueezeGate


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shaken(module):
    """Make every parameter and statistic of a module matter."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) if name.endswith("var") else torch.randn_like(tensor), alpha=0.3)
    return module


@pytest.mark.parametrize("training", [True, False])
def test_inverted_residual_is_timm_s(training):
    ours = shaken(InvertedResidual(16)).train(training)
    theirs = TimmInvertedResidual(
        16, 16, exp_ratio=4.0, se_layer=lambda channels, **_: TimmSqueezeExcite(channels, rd_ratio=0.125)
    ).train(training)
    theirs.load_state_dict(ours.state_dict())  # the names and shapes are timm's too
    x = torch.randn(2, 5, 7, 16)
    expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.bn2.running_var, theirs.bn2.running_var)


def test_one_gate_serves_both_branches_each_by_itself():
    mixer = nn.Linear(16, 16)
    block = shaken(DualBranchBlock(16, mixer)).eval()
    x = torch.randn(2, 4, 6, 16)

    def gated(v):
        se = block.se
        return v * torch.sigmoid(se.expand(F.gelu(se.reduce(se.norm(v).mean((1, 2)))))).unflatten(1, (1, 1, -1))

    n = block.norm(x)
    image = n.permute(0, 3, 1, 2)
    branch = F.conv2d(image, block.branch_dw.weight, block.branch_dw.bias, padding=1, groups=16)
    branch = F.conv2d(F.gelu(block.branch_norm(branch)), block.branch_pw.weight, block.branch_pw.bias)
    branch = branch.permute(0, 2, 3, 1)
    found = block(x)
    torch.testing.assert_close(found, x + gated(mixer(n)) + gated(branch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, x + gated(mixer(n) + branch), rtol=1e-2, atol=1e-2)
    assert sum(isinstance(module, SqueezeGate) for module in block.modules()) == 1


def test_an_mlp_comes_with_a_norm_of_its_own_and_only_when_asked_for():
    assert DualBranchBlock(16, nn.Identity()).mlp is None
    block = shaken(DualBranchBlock(16, nn.Identity(), mlp_ratio=2.5)).eval()
    assert block.mlp.fc1.out_features == 40
    x = torch.randn(1, 4, 4, 16)
    seen = {}
    block.mlp.register_forward_hook(lambda _, args, out: seen.update(read=args[0], added=out))
    out = block(x)
    torch.testing.assert_close(seen["read"], block.norm2(out - seen["added"]), rtol=1e-4, atol=1e-5)


def test_drop_path_drops_all_that_a_block_adds():
    for block in (DualBranchBlock(16, nn.Identity(), drop_path=0.5), InvertedResidual(16, drop_path=0.5)):
        x = torch.randn(64, 2, 2, 16)
        unchanged = (block.train()(x) == x).flatten(1).all(1)
        assert 10 < unchanged.sum() < 54
        assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_pointwise_convolution_is_a_convolution():
    conv = PointwiseConv(6, 4)
    plain = nn.Conv2d(6, 4, 1)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(conv(x), plain(x))


def test_too_few_channels_to_squeeze():
    with pytest.raises(ConfigError, match="keeps 1/8 of the channels, and 7 leave none"):
        SqueezeGate(7)
