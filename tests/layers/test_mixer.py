"""The mixer against its definition, written out step by step in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from vision_ssm.errors import ConfigError
from vision_ssm.layers import SelectiveSSM, VimMixer
from vision_ssm.layers.mixer import MIXER_DIRECTIONS
from vision_ssm.ops import Traversal


def one_direction(u, z, A, D, x_proj, dt_proj, dt_bias, states):
    """Scan tokens u [L, E] in the order given; gate z [L, E]."""
    rank = dt_proj.shape[1]
    h = torch.zeros(u.shape[1], states, dtype=u.dtype)
    out = []
    for t in range(u.shape[0]):
        low, b, c = (x_proj @ u[t]).split([rank, states, states])
        delta = F.softplus(dt_proj @ low + dt_bias)
        h = torch.exp(delta[:, None] * A) * h + (delta * u[t])[:, None] * b
        out.append((h @ c + D * u[t]) * F.silu(z[t]))
    return torch.stack(out)


def convolve(x, weight, bias):
    """Causal, oldest tap first: x [L, E], weight [E, T]."""
    taps = weight.shape[1]
    padded = torch.cat([torch.zeros(taps - 1, x.shape[1], dtype=x.dtype), x])
    return F.silu(torch.stack([(padded[t : t + taps].T * weight).sum(1) + bias for t in range(x.shape[0])]))


def by_definition(mixer, tokens, direction):
    ssm = mixer.ssm
    x, z = (tokens @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    total = 0
    for k, backwards in enumerate(MIXER_DIRECTIONS[direction][0]):
        p = k if direction == "bidirectional" else 0
        shared = direction == "shared"
        # 'shared' convolves forwards once and reverses what came out; the others reverse first.
        u, gate = (x, z) if shared or not backwards else (x.flip(0), z.flip(0))
        u = convolve(u, mixer.conv_weight[p], mixer.conv_bias[p])
        if shared and backwards:
            u, gate = u.flip(0), gate.flip(0)
        y = one_direction(
            u,
            gate,
            -torch.exp(ssm.A_log[k]),
            ssm.D[p],
            ssm.x_proj_weight[p],
            ssm.dt_proj_weight[p],
            ssm.dt_proj_bias[p],
            ssm.states,
        )
        total = total + (y.flip(0) if backwards else y)
    out = total @ mixer.out_proj.weight.T
    return out / 2 if mixer.halve else out


@pytest.mark.parametrize("direction", MIXER_DIRECTIONS)
@pytest.mark.parametrize("halve", [True, False])
def test_mixer_is_its_definition(direction, halve):
    torch.manual_seed(0)
    mixer = VimMixer(6, states=3, direction=direction, halve=halve).double()
    with torch.no_grad():
        mixer.ssm.A_log.add_(torch.randn_like(mixer.ssm.A_log))
        mixer.ssm.D.add_(torch.randn_like(mixer.ssm.D))
    tokens = torch.randn(2, 7, 6, dtype=torch.float64)
    expected = torch.stack([by_definition(mixer, image, direction) for image in tokens])
    torch.testing.assert_close(mixer(tokens), expected)


def test_only_the_bidirectional_mixer_halves():
    assert [VimMixer(4, direction=name).halve for name in MIXER_DIRECTIONS] == [True, False, False, False]


def test_layer_scale_multiplies_the_output():
    torch.manual_seed(0)
    mixer = VimMixer(6, layer_scale=0.1)
    tokens = torch.randn(1, 5, 6)
    scaled = mixer(tokens)
    mixer.gamma = None
    torch.testing.assert_close(scaled, 0.1 * mixer(tokens))


def test_initial_values_are_the_published_ones():
    torch.manual_seed(0)
    mixer = VimMixer(192, depth=24)
    ssm, inner, rank = mixer.ssm, 384, 12
    torch.testing.assert_close(ssm.A_log, torch.arange(1.0, 17).log().expand(2, inner, 16))
    assert torch.all(ssm.D == 1)
    step = F.softplus(ssm.dt_proj_bias[0])
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 1e-1 * 1.001
    # Log-uniform: the middle of the range in logarithms is the median.
    assert step.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.2)
    assert torch.all(ssm.dt_proj_bias[1] == 0)
    for weight, bound in (
        (ssm.dt_proj_weight, rank**-0.5),
        (ssm.x_proj_weight, inner**-0.5),
        (mixer.conv_weight, 0.5),
        (mixer.conv_bias, 0.5),
        (mixer.in_proj.weight, 192**-0.5),
        (mixer.out_proj.weight, inner**-0.5 / 24**0.5),
    ):
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_the_fixed_initialisation_draws_both_directions():
    bias = VimMixer(192, backward_step="fixed").ssm.dt_proj_bias
    assert bias.max() < -2.2
    assert not torch.equal(bias[0], bias[1])


@pytest.mark.parametrize("option", [{"direction": "bidirektional"}, {"backward_step": "fix"}])
def test_unknown_choices_name_the_nearest(option):
    with pytest.raises(ConfigError, match="Did you mean"):
        VimMixer(8, **option)


@pytest.mark.parametrize("grad", [True, False])
def test_some_directions_run_by_themselves(grad):
    ssm = SelectiveSSM(4, directions=2, states=2)
    u = torch.randn(1, 5, 4)
    walks = [Traversal.sequence(5), Traversal.sequence(5, reverse=True)]
    with torch.set_grad_enabled(grad):
        apart = [ssm(u, None, walks[k : k + 1], directions=slice(k, k + 1)) for k in (0, 1)]
        torch.testing.assert_close(apart[0] + apart[1], ssm(u, None, walks))
        assert not torch.allclose(apart[0], apart[1])


def test_recurrence_constants_stay_float32_in_half_precision(monkeypatch):
    seen = {}

    def spy(u, delta, A, B, C, D, z, delta_bias, **_):
        seen.update(A=A.dtype, u=u.dtype)  # the scan itself widens D and delta_bias
        return u[:, 0]

    monkeypatch.setattr("vision_ssm.ops.ssm.reference.selective_scan", spy)
    ssm = SelectiveSSM(4).bfloat16()
    ssm(torch.randn(1, 3, 4, dtype=torch.bfloat16), None, [Traversal.sequence(3)])
    assert seen == {"A": torch.float32, "u": torch.bfloat16}


@pytest.mark.parametrize("sizes", [{"channels": 0}, {"channels": 4, "states": 0}, {"channels": 4, "directions": 0}])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ConfigError, match="must be positive"):
        SelectiveSSM(**sizes)
