"""The atrous mixer against the published definition written out, group by group and token by token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vision_ssm.errors import ConfigError
from vision_ssm.layers.efficient_ss2d import AtrousSSM, EfficientSS2D, atrous_traversals


def test_the_published_order_on_a_map_of_4_by_6():
    names = [[10 * (t // 6) + t % 6 for t in map(walk.token, range(walk.length))] for walk in atrous_traversals(4, 6)]
    assert names == [
        [0, 2, 4, 20, 22, 24],
        [10, 30, 12, 32, 14, 34],
        [1, 3, 5, 21, 23, 25],
        [11, 31, 13, 33, 15, 35],
    ]


def written_out(mixer, x):
    """The definition: sort the pixels into groups, project and scan each by itself, put every result back."""
    batch, height, width, _ = x.shape
    inner = mixer.out_norm.normalized_shape[0]
    hidden, gate = mixer.in_proj(x).split(inner, dim=-1)
    u = F.silu(mixer.conv(hidden.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    u = F.pad(u, (0, 0, 0, width % 2, 0, height % 2))
    y = torch.full_like(u, math.nan)
    ssm = mixer.ssm
    for k in range(4):
        row, column = k % 2, k // 2
        pixels = [(r, c) for r in range(row, u.shape[1], 2) for c in range(column, u.shape[2], 2)]
        if row == 1:
            pixels.sort(key=lambda pixel: pixel[1])
        state = torch.zeros(batch, inner, ssm.states, dtype=x.dtype)
        for r, c in pixels:
            token = u[:, r, c]
            low_rank, b, out = (token @ ssm.x_proj_weight[k].T).split([ssm.rank, ssm.states, ssm.states], dim=-1)
            delta = F.softplus(low_rank @ ssm.dt_proj_weight[k].T + ssm.dt_proj_bias[k])[..., None]
            state = torch.exp(-delta * ssm.A_log[k].exp()) * state + delta * b[:, None] * token[..., None]
            y[:, r, c] = (state * out[:, None]).sum(-1) + ssm.D[k] * token
    y = mixer.out_norm(y[:, :height, :width])
    return mixer.out_proj(y * F.silu(gate))


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (3, 5), (1, 1), (1, 4)])
def test_forward_and_gradients_follow_the_definition(size):
    torch.manual_seed(0)
    mixer = EfficientSS2D(6, states=3).double()
    for parameter in (mixer.ssm.A_log, mixer.ssm.D):  # apart, so that a swapped group shows
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    towards = torch.randn_like(x)
    inputs = [x, *mixer.parameters()]
    found, expected = mixer(x), written_out(mixer, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


class Moves(TorchDispatchMode):
    """Records the operations that rearrange or copy at least `least` elements."""

    NAMES = ("index", "gather", "flip", "cat", "stack", "clone", "copy", "constant_pad", "slice_backward", "as_strided")

    def __init__(self, least):
        super().__init__()
        self.least, self.found = least, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").lstrip("_")
        if isinstance(result, torch.Tensor) and result.numel() >= self.least and name.startswith(self.NAMES):
            self.found.append((name, tuple(result.shape)))
        return result


def test_no_copy_of_the_map_is_made_forward_or_backward(monkeypatch):
    monkeypatch.setattr("vision_ssm.layers.untouched.intercepted", lambda: False)  # by what watches here
    mixer = EfficientSS2D(32)
    with Moves(2 * 16 * 16 * 64) as moves:
        mixer(torch.randn(2, 16, 16, 32, requires_grad=True)).square().sum().backward()
    assert moves.found == []
    with Moves(2 * 17 * 17 * 64) as moves:  # an odd map is padded once and cropped: the record does see copies
        mixer(torch.randn(2, 17, 17, 32, requires_grad=True)).square().sum().backward()
    assert "constant_pad_nd" in [name for name, _ in moves.found]


@pytest.mark.parametrize("step", [1, 3, 4, 0, 2.5])
def test_other_steps_are_refused_with_the_reason(step):
    with pytest.raises(ConfigError, match=r"step must be 2.*four groups of weights"):
        AtrousSSM(8, step=step)
    with pytest.raises(ConfigError, match="step must be 2"):
        EfficientSS2D(8, step=step)


def test_initial_values_are_the_published_ones():
    torch.manual_seed(0)
    ssm = EfficientSS2D(96).ssm
    assert (ssm.channels, ssm.directions, ssm.rank, ssm.states) == (192, 4, 6, 16)
    torch.testing.assert_close(ssm.A_log.exp(), torch.arange(1.0, 17).expand(4, 192, 16))
    assert torch.all(ssm.D == 1)
    assert ssm.x_proj_weight.abs().max() <= 192**-0.5 and ssm.dt_proj_weight.abs().max() <= 6**-0.5
    steps = F.softplus(ssm.dt_proj_bias)
    assert 1e-3 <= steps.min() < 2e-3 and 5e-2 < steps.max() <= 1e-1
