"""The cross-scan mixer against its definition in plain loops over pixels."""

import pytest
import torch
import torch.nn.functional as F

from vision_ssm.errors import ConfigError
from vision_ssm.layers.ss2d import SCAN_PATTERNS, SS2D

HEIGHT, WIDTH, CHANNELS = 3, 5, 8


def mixer(**options):
    torch.manual_seed(0)
    built = SS2D(CHANNELS, **{"states": 2, "ratio": 1.5, **options}).double()
    with torch.no_grad():
        built.ssm.D.normal_()  # ones would hide a mixed-up order of the parameter sets
    return built


def scan(ssm, k, u):
    """Set k of the parameters over tokens u [T, E] in the order given, by the recurrence as it is written."""
    projected = u @ ssm.x_proj_weight[k].T
    low_rank, b, c = projected.split([ssm.rank, ssm.states, ssm.states], dim=-1)
    delta = F.softplus(low_rank @ ssm.dt_proj_weight[k].T + ssm.dt_proj_bias[k])
    state, out = torch.zeros(ssm.channels, ssm.states, dtype=u.dtype), []
    for t in range(len(u)):
        state = state * torch.exp(-delta[t, :, None] * ssm.A_log[k].exp()) + (delta[t] * u[t])[:, None] * b[t]
        out.append(state @ c[t] + ssm.D[k] * u[t])
    return torch.stack(out)


def scanned(pattern, ssm, u):
    """What a pattern makes of a map u [H, W, E]."""
    height, width = u.shape[:2]
    if pattern == "cascade":
        u = F.layer_norm(u, u.shape[-1:])
        # The way back is not turned round again: step t of either scan adds to pixel t of the row.
        u = torch.stack([scan(ssm, 0, row) + scan(ssm, 1, row.flip(0)) for row in u])
        u = F.layer_norm(u, u.shape[-1:])
        return torch.stack([scan(ssm, 2, u[:, w]) + scan(ssm, 3, u[:, w].flip(0)) for w in range(width)], dim=1)
    rows = [(h, w) for h in range(height) for w in range(width)]
    columns = [(h, w) for w in range(width) for h in range(height)]
    orders = {
        "cross": [rows, columns, rows[::-1], columns[::-1]],
        "unidirectional": [rows] * 4,
        "bidirectional": [rows, rows, rows[::-1], rows[::-1]],
    }[pattern]
    total = torch.zeros_like(u)
    for k, order in enumerate(orders):
        y = scan(ssm, k, torch.stack([u[place] for place in order]))
        for place, value in zip(order, y, strict=True):
            total[place] += value
    return total


def by_definition(built, x, pattern="cross", out_norm="layer"):
    """The mixer on a map x [H, W, C]."""
    projected = x @ built.in_proj.weight.T
    z = None
    if built.gate:
        projected, z = projected.chunk(2, dim=-1)
    if built.conv is not None:
        projected = built.conv(projected.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    y = scanned(pattern, built.ssm, built.act(projected))
    if "layer" in out_norm:
        y = F.layer_norm(y, y.shape[-1:], built.out_norm.weight, built.out_norm.bias)
    if "conv" in out_norm:
        y = built.out_conv(y.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    if out_norm == "softmax":
        y = y.flatten(0, 1).softmax(dim=0).unflatten(0, x.shape[:2])
    if out_norm == "sigmoid":
        y = y.sigmoid()
    return (y if z is None else y * built.act(z)) @ built.out_proj.weight.T


@pytest.mark.parametrize("pattern", SCAN_PATTERNS)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 4), (4, 1), (1, 1)])
@torch.no_grad()
def test_patterns(pattern, size):
    built = mixer(scan_pattern=pattern)
    x = torch.randn(2, *size, CHANNELS, dtype=torch.float64)
    found = built(x)
    for image, result in zip(x, found, strict=True):
        torch.testing.assert_close(result, by_definition(built, image, pattern))


@pytest.mark.parametrize(
    "options",
    [
        {"gate": True, "conv_bias": True, "states": 16, "ratio": 2.0},
        {"conv": False},
        {"conv": False, "gate": True, "act_layer": "gelu"},
        {"act_layer": "relu"},
        *({"out_norm": kind} for kind in ("none", "conv", "layer_conv", "softmax", "sigmoid")),
        {"out_norm": "conv", "gate": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_options(options):
    built = mixer(**options)
    x = torch.randn(1, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(built(x)[0], by_definition(built, x[0], out_norm=options.get("out_norm", "layer")))


@pytest.mark.parametrize("pattern", SCAN_PATTERNS)
def test_gradients_are_those_of_the_definition(pattern):
    built = mixer(scan_pattern=pattern, gate=True)
    x = torch.randn(1, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(HEIGHT, WIDTH, CHANNELS, dtype=torch.float64)
    tensors = [x, *built.parameters()]
    found = torch.autograd.grad((built(x)[0] * weight).sum(), tensors)
    expected = torch.autograd.grad((by_definition(built, x[0], pattern) * weight).sum(), tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_every_pattern_has_the_same_parameters():
    shapes = [
        {name: p.shape for name, p in mixer(scan_pattern=pattern).named_parameters()} for pattern in SCAN_PATTERNS
    ]
    assert all(found == shapes[0] for found in shapes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan_pattern": "crosss"}, "Did you mean 'cross'"),
        ({"out_norm": "layernorm"}, "out_norm must be one of layer, none, conv, layer_conv, softmax, sigmoid"),
        ({"act_layer": "selu"}, "act_layer must be one of silu, gelu, relu, sigmoid"),
        ({"conv": False, "conv_bias": True}, "needs the convolution that conv=False leaves out"),
        ({"ratio": 0}, "ssm_ratio=0 leaves no inner channels of 8"),
        ({"states": 0}, "d_state must be a whole number of at least 1, got 0"),
        ({"states": 1.5}, "d_state must be a whole number of at least 1, got 1.5"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ConfigError, match=message):
        SS2D(CHANNELS, **options)
