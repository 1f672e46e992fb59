"""The MLP in tiles equals the MLP at once."""

import pytest
import torch
from timm.layers import Mlp

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
