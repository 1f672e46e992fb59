"""DiG equals its published class, through load_published; the walked block equals one that lays the sequence out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.recorded import load, relative
from vision_ssm.checkpoints import dig, load_published
from vision_ssm.models import create_model
from vision_ssm.models.dig_variants import AUTOENCODER
from vision_ssm.ops import gla

RECORDING = load("s2", "dig")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("chunked", "reference")]
BACKENDS = pytest.mark.parametrize("backend", ["cpu", *SLOW], indirect=True)


def inputs():
    x = np.random.RandomState(0).standard_normal((2, 4, 32, 32)).astype(np.float32)
    return torch.from_numpy(x), *(torch.from_numpy(RECORDING.arrays[name]) for name in ("t", "y"))


def published():
    model = create_model("dig_s2")
    weights = RECORDING.published_weights()
    nothing = {name: torch.zeros_like(x) for name, x in weights.items()}
    # What train.py saves: the training weights, their average, the optimiser's state and the arguments.
    load_published(model, {"model": nothing, "ema": weights, "opt": {}, "args": None}, weights="model_ema")
    return model.eval()


def deviations(model):
    """Relative deviations of the gradients' norms, and those of <gradient, parameter>, from what was recorded."""
    trained = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    gradients = dig.to_published({key: p.grad.double() for key, p in trained})
    values = dig.to_published({key: p.detach().double() for key, p in trained})
    names, norms, dots = (RECORDING.arrays[f"grad_{of}"] for of in ("names", "norms", "param_dots"))
    assert sorted(gradients) == sorted(names)
    found = [
        (
            gradients[key].norm().item() / norm - 1,
            ((gradients[key] * values[key]).sum().item() - dot) / (norm * values[key].norm().item()),
        )
        for key, norm, dot in zip(names, norms, dots, strict=True)
    ]
    return torch.tensor(found).abs().T


@BACKENDS
@torch.no_grad()
def test_outputs(backend):
    assert relative(published()(*inputs()), RECORDING.arrays["logits"]) < 1e-4


@pytest.mark.slow
@BACKENDS
def test_gradients(backend):
    """Rounding moves some gradients here by 1e-3, in plain torch as well: all together are held to that."""
    model = published()
    model(*inputs()).square().mean().backward()
    norms, dots = deviations(model)
    assert norms.square().mean().sqrt() < 1e-3 and norms.max() < 3e-3
    assert dots.max() < 1e-3


@pytest.mark.slow
def test_every_gradient_in_float64():
    model = published().double()
    x, t, y = inputs()
    found = model(x.double(), t, y)
    assert relative(found.detach(), RECORDING.arrays["logits"]) < 1e-5
    found.square().mean().backward()
    norms, dots = deviations(model)
    assert norms.max() < 1e-3
    assert dots.max() < 1e-3


def test_names_shapes_and_numbers_of_parameters():
    with torch.device("meta"):
        model = create_model("dig_s2")
        joined = create_model("dig_s2", skip=True)
    ours = {key: list(x.shape) for key, x in dig.to_published(model.state_dict()).items()}
    assert ours == RECORDING.published_shapes()
    counts = [sum(p.numel() for p in of.parameters()) for of in (model, joined)]
    assert counts == [int(RECORDING.arrays["n_params"]), 34_558_112]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == int(RECORDING.arrays["n_params_trainable"])
    assert json.loads(str(RECORDING.arrays["config"]))["constructor"] == {"input_size": 32, "num_classes": 1000}
    assert AUTOENCODER.reduction * 32 == 256


class LaidOut:
    """The same weights run as published: every block takes the sequence from its first token, and it is turned over."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x, t, y):
        model = self.model
        tokens, (side, _) = model.patch_embed(x)
        c = F.silu(model.t_embed(t) + model.y_embed(y))
        tokens, kept = tokens + model.pos_embed, []
        for j, block in enumerate(model.blocks):
            if block.skip is not None:
                tokens = block.skip(torch.cat([tokens, kept.pop()], dim=-1))
            tokens = self.block(block, tokens, c, side).flip(1)
            if j % 2 == 1:
                tokens = tokens.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
            if j < len(model.blocks) // 2 - 1:
                kept.append(tokens)
        return model._unpatched(model.output(tokens.unflatten(1, (side, side)), c))

    def block(self, block, x, c, side):
        shift, scale, gate, shift2, scale2, gate2 = (part[:, None] for part in block.modulation(c).chunk(6, dim=1))
        norm = nn.LayerNorm(x.shape[-1], eps=1e-6, elementwise_affine=False)
        x = x + gate * self.mixer(block.mixer, norm(x) * (1 + scale) + shift)
        x = x + gate2 * block.mlp(norm(x) * (1 + scale2) + shift2)
        return block.conv(x.mT.unflatten(2, (side, side))).flatten(2).mT

    def mixer(self, mixer, x):
        gates = F.logsigmoid(mixer.gate_up(mixer.gate_down(x))) / 16
        o = gla(mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x), gates[:, None], heads=mixer.heads)
        o = mixer.norm(o.unflatten(-1, (mixer.heads, -1))).flatten(-2)
        return mixer.o_proj(o * F.silu(mixer.g_proj(x)))


@pytest.mark.parametrize("depth", [4, 12])
@torch.no_grad()
def test_joined_blocks_meet_step_by_step(depth):
    """No recording of the joined variants is at hand: the walks are held to the sequence turned over and over."""
    torch.manual_seed(0)
    model = create_model("dig_nano", embed_dim=16, depth=depth, skip=True).double().eval()
    assert [j for j, block in enumerate(model.blocks) if block.skip is not None] == [*range(depth // 2 + 1, depth)]
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    given = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([3, 700]), torch.tensor([1, 10])
    laid_out = model._positions((4, 4))
    model.pos_embed, model.patch_embed.grid_size = nn.Parameter(laid_out), (4, 4)
    expected = LaidOut(model)(*given)
    torch.testing.assert_close(model(*given), expected)
    plain = create_model("dig_nano", embed_dim=16, depth=depth).double().eval()
    plain.load_state_dict(
        {k: x for k, x in model.state_dict().items() if ".skip." not in k and k != "pos_embed"}, False
    )
    assert relative(plain(*given), expected) > 0.01
