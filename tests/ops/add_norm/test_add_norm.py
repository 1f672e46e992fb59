"""The reference against the norms' own formulas, and where add_norm runs as it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.scan.cases import GPU
from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.ops import add_norm
from vision_ssm.ops.add_norm import reference

EPS = 0.1


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) + 1.5


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("channels", [1, 7, 5000])  # the last are more than kernels take
def test_the_formulas(kind: str, with_bias: bool, channels: int) -> None:
    x, added, weight = drawn(2, 3, channels), drawn(3, channels).expand(2, 3, channels), drawn(channels)
    bias = weight.flip(0) if with_bias else None
    s = x + added
    centred = s - s.mean(-1, keepdim=True) if kind == "layer" else s
    expected = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + (0 if bias is None else bias)
    for found in (add_norm(x, added, weight, bias, EPS, kind), reference.forward(x, added, weight, bias, EPS, kind)):
        torch.testing.assert_close(found, (s, expected))


def test_the_stream_stays_wide_and_the_norm_has_its_weights_dtype() -> None:
    x, added, weight = drawn(4, 9).float(), drawn(4, 9).bfloat16(), drawn(9).bfloat16()
    stream, normalised = add_norm(x, added, weight)
    assert stream.dtype == torch.float32 and normalised.dtype == torch.bfloat16
    assert torch.equal(stream, x + added)


def test_gradients_are_the_numerical_derivatives() -> None:
    inputs = [t.requires_grad_() for t in (drawn(3, 4), drawn(3, 4) * 2, drawn(4), drawn(4) + 1)]
    for kind in ("rms", "layer"):
        assert torch.autograd.gradcheck(lambda *t, kind=kind: add_norm(*t, EPS, kind), inputs)


@pytest.mark.skipif(GPU, reason="where no kernel runs")
def test_what_does_not_fit_is_told_without_a_kernel_too() -> None:
    x = drawn(5, 12)
    with pytest.raises(ShapeError, match=r"weight \[12\], got \[11\]"):
        add_norm(x, x, x[0, 1:])
    with pytest.raises(ConfigError, match=r"kind must be one of rms, layer, got 'layr'\. Did you mean 'layer'"):
        add_norm(x, x, x[0], kind="layr")
