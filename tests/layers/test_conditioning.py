"""Timesteps, classes and modulation, against plain numbers."""

from __future__ import annotations

import math

import pytest
import torch

from vision_ssm.layers.conditioning import ClassEmbed, ModulatedOutput, TimestepEmbed


def test_the_waves_of_a_timestep():
    embed = TimestepEmbed(256)
    torch.nn.init.eye_(embed.fc1.weight)
    seen: list[torch.Tensor] = []
    embed.fc1.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    embed(torch.tensor([0, 7]))
    assert seen[0][0].tolist() == [1.0] * 128 + [0.0] * 128
    for j in (0, 1, 64, 127):
        angle = 7 * 10000 ** (-j / 128)
        assert seen[0][1, j].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert seen[0][1, 128 + j].item() == pytest.approx(math.sin(angle), abs=1e-6)
    assert embed.bfloat16()(torch.tensor([999])).dtype == torch.bfloat16
    torch.testing.assert_close(seen[1], waves(999).bfloat16())


def waves(t):
    angles = t * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    return torch.cat([angles.cos(), angles.sin()])[None]


def test_no_class_is_the_last_row():
    embed = ClassEmbed(3, 4, 0.1).eval()
    assert embed.table.weight.shape == (4, 4)
    torch.testing.assert_close(embed(torch.tensor([1]), torch.tensor([True])), embed.table.weight[3:])


def test_the_output_scales_and_shifts_what_is_normalised():
    layer = ModulatedOutput(8, 8)
    torch.nn.init.eye_(layer.linear.weight)
    x, c = torch.randn(2, 3, 5, 8), torch.randn(2, 8)
    shift, scale = layer.modulation(c).split(8, dim=1)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = normal * (1 + scale.view(2, 1, 1, 8)) + shift.view(2, 1, 1, 8) + layer.linear.bias
    torch.testing.assert_close(layer(x, c), expected)
