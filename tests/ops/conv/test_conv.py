from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import causal_conv1d


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: tuple[bool, ...], activation: bool) -> Tensor:
    """torch's grouped convolution, channel-first, on the flipped sequence where a direction runs backwards."""
    results = []
    for k, backwards in enumerate(reverse):
        sequence = x.flip(1) if backwards else x
        taps = weight.shape[2]
        y = F.conv1d(
            sequence.transpose(1, 2),
            weight[k][:, None],
            None if bias is None else bias[k],
            padding=taps - 1,
            groups=x.shape[2],
        )[..., : x.shape[1]].transpose(1, 2)
        results.append(y.flip(1) if backwards else y)
    stacked = torch.stack(results, 1)
    return F.silu(stacked) if activation else stacked


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 5, 64, 197])
@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True)])
@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_equals_torch_in_outputs_and_gradients(
    tokens: int,
    reverse: tuple[bool, ...],
    activation: bool,
    with_bias: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VISION_SSM_BACKEND", backend)
    if tokens == 0:
        assert causal_conv1d(torch.zeros(2, 0, 3), torch.zeros(1, 3, 4)).shape == (2, 1, 0, 3)
        return
    torch.manual_seed(0)
    directions, channels = len(reverse), 37
    # A slice of a wider projection, as a mixer passes it.
    x = torch.randn(2, tokens, 2 * channels)[..., :channels].requires_grad_()
    weight = torch.randn(directions, channels, 4, requires_grad=True)
    bias = torch.randn(directions, channels, requires_grad=True) if with_bias else None
    inputs = [x, weight, *([bias] if bias is not None else [])]
    ours = causal_conv1d(x, weight, bias, reverse=reverse, activation=activation)
    theirs = by_torch(x, weight, bias, reverse, activation)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"weight \[2, C, T\], got x \[1, 5, 3\], weight \[1, 3, 4\]"):
        causal_conv1d(torch.zeros(1, 5, 3), torch.zeros(1, 3, 4), reverse=(False, True))
