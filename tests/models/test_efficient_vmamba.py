"""Variants, options, sizes and timm's doors of EfficientVMamba."""

from __future__ import annotations

import pytest
import timm
import timm.optim
import torch

from tests.models.learning import check_learning
from tests.recorded import load
from vision_ssm.analysis import cost
from vision_ssm.checkpoints.efficient_vmamba import to_published
from vision_ssm.errors import CheckpointError, ConfigError, ShapeError
from vision_ssm.models import create_model

NANO = "efficientvmamba_nano"


def nano(**options):
    torch.manual_seed(0)
    return create_model(NANO, **options)


# Counted on the published class; the small one's width 96 is that of the repository's yaml.
@pytest.mark.parametrize(
    ("name", "options", "params", "entries"),
    [
        ("efficientvmamba_tiny", {}, 6_493_660, 261),
        ("efficientvmamba_small", {}, 11_273_688, 261),
        ("efficientvmamba_small", {"embed_dim": 96}, 24_760_000, 261),
        ("efficientvmamba_base", {}, 33_717_136, 371),
    ],
)
def test_sizes_of_the_published_class(name, options, params, entries):
    with torch.device("meta"):
        model = create_model(name, **options)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == params if params % 10_000 else round(found, -4) == params
    assert len(to_published(model.state_dict())) == entries


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    [("efficientvmamba_tiny", 0.806), ("efficientvmamba_small", 1.343), ("efficientvmamba_base", 3.997)],
)
def test_multiply_adds_of_the_published_counter(name, multiply_adds):
    found = cost(name)
    # The published counter also counts the pooling of the inverted residuals, 0.1 %.
    assert 0 < multiply_adds - found.macs / 1e9 < 1.2e-3 * multiply_adds
    # All tokens are projected with the weights of all four groups, three of which are then left out.
    assert found.macs_all > found.macs
    if name.endswith("tiny"):
        assert round(found.scan_macs / 1e9, 3) == 0.131


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (20, 70), (1, 1), (5, 2)])
def test_any_size_gives_maps_of_that_size(height, width):
    model = nano(features_only=True).eval()
    x = torch.randn(2, 3, height, width)
    for i, (found, channels) in enumerate(zip(model(x), model.feature_info.channels(), strict=True)):
        stride = 2 * 2**i
        assert found.shape == (2, channels, -(-height // stride), -(-width // stride))
        assert torch.isfinite(found).all()
    assert model.feature_info.reduction() == [2, 4, 8, 16]
    assert create_model("efficientvmamba_tiny", features_only=True).feature_info.reduction() == [4, 8, 16, 32]


def test_the_dense_backbone_has_a_norm_per_map_and_no_classifier():
    model = create_model("efficientvmamba_tiny", features_only=True, stage_norms=True)
    names = {name.removeprefix("model.") for name in model.state_dict()}
    assert len(to_published(dict.fromkeys(names, torch.empty(4, 1)))) == 265
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_109_332
    shallow = create_model(NANO, features_only=True, stage_norms=True, out_indices=(0, 1))
    assert [found.shape[1] for found in shallow(torch.randn(1, 3, 32, 32))] == [24, 48]


def test_training_reaches_every_parameter_and_learns():
    check_learning(nano(drop_path_rate=0.1))


def test_initial_values_are_the_published_ones():
    torch.manual_seed(0)
    model = create_model("efficientvmamba_tiny")
    block, residual = model.stages[1].blocks[0], model.stages[3].blocks[0]
    for linear in (block.mixer.in_proj, block.se.expand, model.head.fc, model.stages[2].downsample.reduction):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.any(block.se.reduce.bias) and not torch.any(model.head.fc.bias)
    # Convolutions, 1 x 1 included, start as torch's: uniform in 1 / sqrt(fan-in).
    for conv, fan in (
        (residual.conv_pw, 384),
        (residual.se.conv_expand, 192),
        (block.branch_pw, 96),
        (block.mixer.conv, 9),
    ):
        assert 0.9 * fan**-0.5 < conv.weight.abs().max() <= fan**-0.5


def test_what_does_not_decay():
    groups = timm.optim.param_groups_weight_decay(nano(), 0.05, nano().no_weight_decay())
    exempt, decayed = ({id(p) for p in group["params"]} for group in groups)
    assert len(exempt) + len(decayed) == len(list(nano().parameters()))
    names = set(nano().no_weight_decay())
    assert names == {f"stages.{i}.blocks.{j}.mixer.ssm.D" for i in (0, 1) for j in (0, 1)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan_step": 3}, "scan_step must be 2, got 3: there are four groups of weights"),
        ({"embed_dim": 7}, "squeeze-excite keeps 1/8 of the channels, and 7 leave none"),
        ({"embed_dim": 0}, "embed_dim must be a whole number of at least 1"),
        ({"depths": (2, 2, 2)}, "one number for each of the four stages"),
        ({"depths": (2, 0, 2, 2)}, "depths must be positive whole numbers"),
        ({"d_state": 0}, "d_state must be a whole number of at least 1"),
        ({"ssm_ratio": 0.0}, "ssm_ratio=0.0 leaves no inner channels"),
        ({"mlp_ratio": -1.0}, r"mlp_ratio must be 0 \(none\) or leave at least one channel of 24"),
        ({"mlp_ratio": 0.01}, "or leave at least one channel of 24"),
        ({"downsample": "v9"}, "downsample must be one of v1, v2, v3"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"patch_size": 0}, "patch_size must be a positive whole number"),
        ({"global_pool": "token"}, "global_pool must be one of avg"),
        ({"drop_path": 0.1}, "efficientvmamba_nano has no option 'drop_path'. Did you mean 'drop_path_rate'"),
    ],
)
def test_impossible_options_are_refused_with_the_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        create_model(NANO, **options)


def test_bad_images_are_refused():
    with pytest.raises(ShapeError, match=r"expected images \[B, 3, H, W\]"):
        nano()(torch.randn(2, 1, 32, 32))


def test_no_images_give_no_logits():
    for size in ((32, 32), (33, 31)):
        assert nano().eval()(torch.randn(0, 3, *size)).shape == (0, 10)


def test_options_change_what_they_say():
    model = nano(downsample="v2", d_state=4, ssm_ratio=1.0, mlp_ratio=2.0, in_chans=1, num_classes=0)
    mixer = model.stages[1].blocks[0].mixer
    assert (mixer.ssm.states, mixer.ssm.channels) == (4, 48)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 192)


def test_pretrained_names_the_released_files(monkeypatch, tmp_path):
    config = timm.get_pretrained_cfg("efficientvmamba_small")
    assert (config.hf_hub_id, config.hf_hub_filename) == (
        "TerryPei/EfficientVMamba-Small",
        "efficient_vmamba_small.ckpt",
    )
    monkeypatch.setattr("vision_ssm.checkpoints.hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError,
        match=r"could not get efficient_vmamba_tiny.ckpt from huggingface.co/TerryPei/EfficientVMamba-Tiny",
    ):
        create_model("efficientvmamba_tiny", pretrained=True, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no weights were published for efficientvmamba_nano"):
        create_model(NANO, pretrained=True)


def test_a_released_file_becomes_a_classifier_of_other_classes_and_channels(tmp_path):
    weights = load("tiny", "efficientvmamba").published_weights()
    path = tmp_path / "efficient_vmamba_tiny.ckpt"
    torch.save({"state_dict": {f"module.module.{name}": value for name, value in weights.items()}, "epoch": 290}, path)
    name, overlay = "efficientvmamba_tiny", {"file": str(path)}
    model = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    torch.testing.assert_close(
        model.patch_embed.conv1.weight, weights["patch_embed.0.weight"].sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    maps = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, stage_norms=True)
    inner = maps.state_dict()["model.stages.3.blocks.1.conv_pwl.weight"]
    assert torch.equal(inner, weights["layers.3.2.conv_pw2.0.weight"])
