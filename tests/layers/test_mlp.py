"""The MLP in tiles equals the MLP at once; what describes itself to the operator that runs it in one call."""

import pytest
import torch
from timm.layers import Mlp
from torch import nn

from vision_ssm.layers.mlp import LEAST_ROWS, TiledMlp


@pytest.mark.parametrize("shape", [(2, 40, 41, 8), (1, 2 * LEAST_ROWS + 1, 8), (1, 7, 8), (0, 4, 4, 8)])
def test_tiles_change_nothing(shape, monkeypatch):
    monkeypatch.setattr("vision_ssm.layers.mlp.HIDDEN_VALUES", 1024)
    torch.manual_seed(0)
    tiled, whole = TiledMlp(8, 32).double(), Mlp(8, 32).double()
    whole.load_state_dict(tiled.state_dict())
    calls = []
    tiled.fc2.register_forward_hook(lambda _, args, out: calls.append(len(out)))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(tiled(x), whole(x))
    assert len(calls) == 1, "with gradients there are no tiles"
    tiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(tiled(x), whole(x))
    tokens = x.numel() // 8
    assert len(calls) - 1 == (-(-tokens // LEAST_ROWS) if tokens > 2 * LEAST_ROWS else 1)


def changed(change):
    mlp, norm = TiledMlp(8, 32), nn.LayerNorm(8)
    change(mlp, norm)
    return mlp.described(norm)


@pytest.mark.parametrize(
    "change",
    [
        lambda mlp, _: mlp.fc1.register_forward_hook(lambda *_: None),
        lambda mlp, _: mlp.register_forward_pre_hook(lambda *_: None),
        lambda _, norm: norm.register_forward_hook(lambda *_: None),
        lambda mlp, _: setattr(mlp, "act", nn.ReLU()),
        lambda mlp, _: setattr(mlp, "act", nn.GELU("tanh")),
        lambda mlp, _: setattr(mlp, "fc2", nn.Linear(32, 8, bias=False)),
        lambda mlp, _: setattr(mlp, "norm", nn.LayerNorm(32)),
        lambda mlp, _: setattr(mlp, "forward", lambda x: x),
        lambda mlp, _: setattr(mlp.drop1, "p", 0.5),
        lambda mlp, _: mlp.compile(backend="eager"),
        lambda mlp, _: mlp.fc1.compile(backend="eager"),
        lambda mlp, _: nn.utils.parametrizations.weight_norm(mlp.fc1),
    ],
)
def test_a_changed_mlp_does_not_describe_itself(change):
    assert changed(change) is None


def test_others_do():
    described = changed(lambda mlp, _: setattr(mlp.drop1, "p", 0.5) or mlp.register_module("no", None) or mlp.eval())
    assert described is not None
    assert described.norm.kind == "layer"
    assert TiledMlp(8, 32).described(nn.BatchNorm1d(8)) is None
    assert TiledMlp(8, 32).described(nn.LayerNorm(8, elementwise_affine=False)) is None
