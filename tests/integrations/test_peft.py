"""Adapters of PEFT on every linear layer and convolution of every family: they are used, learn, and can be merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vision_ssm.models.registry import create_model

peft = pytest.importorskip("peft")

FAMILIES = {
    "vim_nano": {"depth": 2},
    "vmamba_nano": {"depths": (1, 1, 1, 1)},
    "vmamba_nano gated": {"depths": (1, 1, 1, 1), "gate": True, "mlp_ratio": 0.0},
    "vig_nano": {"depth": 2},
    "efficientvmamba_nano": {"depths": (1, 1, 1, 1)},
}


def adapted(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = create_model(name.partition(" ")[0], num_classes=3, **FAMILIES[name]).eval()
    layers = [key for key, module in plain.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    layers = [key for key in layers if getattr(plain.get_submodule(key), "groups", 1) == 1]
    config = peft.LoraConfig(r=2, target_modules=layers, lora_alpha=4, init_lora_weights=False)
    return plain, peft.get_peft_model(plain, config)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_are_used_learn_and_merge(name: str) -> None:
    _, model = adapted(name)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = model(x)
        with model.disable_adapter():
            assert not torch.allclose(model(x), found, atol=1e-3), "the adapters make a difference"
    learned = model.train()(x)
    learned.square().sum().backward()
    adapters = {key: p for key, p in model.named_parameters() if "lora_" in key}
    assert len(adapters) > 8
    still = [key for key, p in adapters.items() if p.grad is None or not p.grad.any()]
    assert not still, "every adapter gets a gradient"
    with torch.no_grad():
        found = model.eval()(x)  # batch norms have seen a batch more
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(x), found, rtol=1e-3, atol=1e-4)
