"""segmentation_models_pytorch takes the models that have maps at strides 4, 8, 16 and 32 as 'tu-NAME' encoders."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch

from tests.integrations.backbones import DENSE, STRIDES, map_sizes
from vision_ssm.checkpoints.vim import to_published
from vision_ssm.errors import ConfigError
from vision_ssm.families import FAMILIES, named
from vision_ssm.models import all_variants

smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")

PYRAMID = "tu-vim_tiny_patch16_224_pyramid"
NARROW = {"embed_dim": 16}
# Families whose table says which maps to give of a column: all have one stride.
TABLES = [named(family.variants) for family in FAMILIES]
COLUMNS = {row.name for table in TABLES if hasattr(table, "features") for row in table.VARIANTS}


def every_model():
    """All registered names; the larger ones, which only repeat the smaller, are slow to build."""
    names = sorted(all_variants())
    return [pytest.param(n, marks=[pytest.mark.slow] if "_small" in n or "_base" in n else []) for n in names]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(("architecture", "size"), [("Unet", (61, 97)), ("UPerNet", (64, 96))])
def test_trains_and_comes_back_the_same(architecture, size, name, tmp_path):
    torch.manual_seed(0)
    channels = (16, 16, 8, 8, 8) if architecture == "Unet" else 16
    build = getattr(smp, architecture)
    model = build(f"tu-{name}", encoder_weights=None, decoder_channels=channels, classes=3).train()
    images = torch.randn(2, 3, *size)
    assert model.encoder.out_channels == [3, 0, *DENSE[name]]
    assert [tuple(m.shape[-2:]) for m in model.encoder(images)[2:]] == map_sizes(*size)
    out = model(images)
    assert out.shape == (2, 3, *size)
    out.square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    model.eval().save_pretrained(tmp_path)
    reloaded = smp.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(images), model(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", every_model())
def test_every_model_but_a_plain_column_is_an_encoder(name):
    """Built without memory, as the encoder itself does first to see the strides."""
    with torch.device("meta"):
        if name in COLUMNS and all_variants()[name].feature_cls != "pyramid":
            with pytest.raises(ValueError, match="downsampling pattern"):
                smp.encoders.get_encoder(f"tu-{name}", weights=None)
        else:
            finest = 2 if name.endswith("_nano") else 4
            encoder = smp.encoders.get_encoder(f"tu-{name}", weights=None, depth=5 if finest == 4 else 4, in_channels=4)
            assert encoder.model.feature_info.reduction() == [finest * 2**i for i in range(4)]


@pytest.mark.parametrize(
    "architecture", ["DPT", "FPN", "Linknet", "MAnet", "PSPNet", "Segformer", "UPerNet", "Unet", "UnetPlusPlus"]
)
@torch.no_grad()
def test_architectures(architecture):
    model = getattr(smp, architecture)(PYRAMID, encoder_weights=None, classes=2, **NARROW).eval()
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 2, 64, 32)


@pytest.mark.parametrize("architecture", ["DeepLabV3", "DeepLabV3Plus", "PAN"])
@pytest.mark.parametrize("name", DENSE)
def test_architectures_that_want_another_stride_are_refused(architecture, name):
    with pytest.raises(ConfigError, match=f"{name} has no option 'output_stride': the strides of its maps are fixed"):
        getattr(smp, architecture)(f"tu-{name}", encoder_weights=None)


@pytest.mark.parametrize("name", DENSE)
@torch.no_grad()
def test_options_reach_the_model_and_half_precision_runs(name):
    torch.manual_seed(0)
    options = {"encoder_depth": 4, "decoder_channels": (16, 8, 8, 8), "in_channels": 4, "drop_path_rate": 0.3}
    model = smp.Unet(f"tu-{name}", encoder_weights=None, **options, **NARROW).eval()
    assert model.encoder.out_channels[:3] == [4, 0, 16]
    assert model.encoder.model.feature_info.reduction() == list(STRIDES[:3])
    images = torch.randn(1, 4, 64, 64)
    expected = model(images)
    found = model.bfloat16()(images.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


def test_published_weights_whose_file_is_not_needed_again(tmp_path):
    torch.manual_seed(1)
    source = timm.create_model("vim_tiny_patch16_224", **NARROW)
    path = tmp_path / "official.pth"
    torch.save({"model": to_published(source.state_dict())}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = smp.Unet(PYRAMID, encoder_weights=True, pretrained_cfg_overlay={"file": str(path)}, **NARROW).eval()
    blocks = model.encoder.model.body.model.blocks
    for found, expected in zip(blocks.parameters(), source.blocks.parameters(), strict=True):
        assert torch.equal(found, expected)
    path.unlink()
    model.save_pretrained(tmp_path / "saved")
    reloaded = smp.from_pretrained(tmp_path / "saved", encoder_weights=None)
    assert all(torch.equal(a, b) for a, b in zip(reloaded.parameters(), model.parameters(), strict=True))
