"""Cost against published figures, closed forms, and what really running a model keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vision_ssm
from vision_ssm.analysis import cost
from vision_ssm.errors import ConfigError
from vision_ssm.families import FAMILIES, named

# The smallest model of each family that counts in its own way.
SMALLEST = [min(named(family.variants).VARIANTS, key=lambda row: row.params).name for family in FAMILIES if family.macs]
VIM_TINY = {"depth": 24, "width": 192, "inner": 384, "states": 16, "rank": 12, "taps": 4, "patch": 16}


# That every variant's parameters and multiply-adds are those of its row is tested in tests/models/test_variant.py.


@pytest.mark.parametrize("name", SMALLEST)
def test_a_model_inside_another_counts_as_its_family_does(name):
    model = vision_ssm.create_model(name)
    side = model.pretrained_cfg["input_size"][1]
    alone, inside = cost(model, side), cost(nn.Sequential(model), side)
    assert (inside.macs, inside.macs_all) == (alone.macs, alone.macs_all)
    assert alone.macs != alone.macs_all
    # As a feature extractor it is not called itself, only its parts are; the head is what is missing.
    maps = cost(vision_ssm.create_model(name, features_only=True), side)
    assert alone.macs - maps.macs == pytest.approx(alone.macs_all - maps.macs_all, abs=0.001 * alone.macs)


@pytest.mark.parametrize(("size", "tokens"), [(224, 197), ((224, 320), 281), (1248, 6085)])
def test_everything_executed_has_a_closed_form(size, tokens):
    v = VIM_TINY
    projections = 2 * (v["inner"] * (v["rank"] + 2 * v["states"]) + v["rank"] * v["inner"])
    scans = 2 * (9 * v["inner"] * v["states"] + v["inner"])
    per_token = 3 * v["width"] * v["inner"] + 2 * v["taps"] * v["inner"] + projections + scans
    patches = (tokens - 1) * 3 * v["patch"] ** 2 * v["width"]
    expected = v["depth"] * tokens * per_token + patches + v["width"] * 1000
    found = cost("vim_tiny_patch16_224", size)
    assert found.macs_all == expected
    assert found.scan_macs == v["depth"] * tokens * scans


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("resnet50", 25_557_032, 4.09e9), ("vit_base_patch16_224", 86_567_656, 17.6e9)],
)
def test_models_of_timm(name, params, macs):
    # ResNet-50's 4.09 G is torchvision's figure; ViT-B's 17.6 G that of the DeiT paper, attention included.
    found = cost(name)
    assert found.params == params
    assert found.macs == found.macs_all == pytest.approx(macs, rel=0.01)
    assert found.scan_macs == 0


def test_batch_multiplies_and_size_is_taken():
    one, four = cost("vim_nano"), cost("vim_nano", batch_size=4)
    assert four.input_size == (4, 3, 32, 32)
    assert four.macs_all == 4 * one.macs_all
    assert four.params == one.params


def test_layers_add_up_and_containers_hold_their_parts():
    found = cost("vim_nano")
    layers = {layer.name: layer for layer in found.by_layer}
    blocks = [layer for name, layer in layers.items() if name.startswith("blocks.") and name.count(".") == 1]
    assert layers["blocks"].macs == sum(block.macs for block in blocks) > 0
    top = [layer.macs for name, layer in layers.items() if "." not in name]
    assert sum(top) == found.macs_all


def test_training_memory_is_what_autograd_really_keeps():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 256), nn.Linear(256, 8)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x.flatten(2).mean(1))))

    found = cost(Net(), (8, 8), batch_size=10)
    # a keeps the mean; tanh keeps its result, which b keeps too. The mean itself keeps nothing.
    assert found.training_bytes == 4 * 10 * (64 + 256)


def test_inference_memory_counts_what_is_alive_at_once():
    class Net(nn.Module):
        def forward(self, x):
            x = x * 2  # lives beside the input
            x = x + 1  # both, for the moment of the addition
            return x.sum()

    found = cost(Net(), 16)
    assert found.inference_bytes == 3 * (4 * 3 * 16 * 16)


def test_training_memory_of_a_scan_is_linear_in_length():
    short, long = cost("vim_tiny_patch16_224", 512, batch_size=2), cost("vim_tiny_patch16_224", 1024, batch_size=2)
    assert long.training_bytes / short.training_bytes == pytest.approx(4097 / 1025, rel=0.02)


def test_a_module_is_measured_as_it_is_and_left_as_it_was():
    model = vision_ssm.create_model("vim_nano", num_classes=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = cost(model, 48)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.input_size == (1, 3, 48, 48)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 0}, "img_size must be positive, got 0 x 0"),
        ({"img_size": (32, -1)}, "img_size must be positive, got 32 x -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_sizes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        cost("vim_nano", **arguments)


def test_a_size_the_model_refuses():
    with pytest.raises(ConfigError, match="cannot take images of 33 x 33"):
        cost(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), 33)
