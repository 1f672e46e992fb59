import pytest
import torch

from vision_ssm.errors import ConfigError
from vision_ssm.layers import make_norm


def test_rms_norm_is_its_formula():
    norm = make_norm("rms", 8)
    with torch.no_grad():
        norm.weight.uniform_()
    x = torch.randn(3, 8, dtype=torch.float32)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_a_float32_stream_is_normalised_in_float32_and_leaves_in_the_weights_dtype(name):
    exact, half = make_norm(name, 64), make_norm(name, 64).bfloat16()
    x = torch.randn(5, 64) + 100
    found = half(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact(x).bfloat16())


def test_unknown_norm_names_the_nearest():
    with pytest.raises(ConfigError, match=r"norm_layer must be one of rms, layer, got 'layr'\. Did you mean 'layer'"):
        make_norm("layr", 4)
