"""transformers' TimmBackbone, alone and under UperNet, with the models that have maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

from tests.integrations.backbones import DENSE, map_sizes
from vision_ssm.checkpoints.vim import to_published

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

PYRAMID = "vim_tiny_patch16_224_pyramid"
ALL = [0, 1, 2, 3]


def upernet(name):
    config = transformers.UperNetConfig(
        backbone_config=transformers.TimmBackboneConfig(backbone=name, out_indices=ALL),
        num_labels=5,
        hidden_size=16,
        auxiliary_channels=8,
    )
    torch.manual_seed(0)
    return transformers.UperNetForSemanticSegmentation(config)


def backbone(name, out_indices):
    config = transformers.TimmBackboneConfig(backbone=name, out_indices=out_indices)
    return transformers.AutoBackbone.from_config(config).eval()


@pytest.mark.parametrize("name", DENSE)
@torch.no_grad()
def test_feature_maps(name):
    model = backbone(name, ALL)
    assert model.channels == DENSE[name]
    images = torch.randn(1, 3, 61, 97)
    maps = model(images).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, c, *s) for c, s in zip(DENSE[name], map_sizes(61, 97), strict=True)]
    hidden = model(images, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(hidden, maps, strict=True))
    two = backbone(name, [0, 2])
    assert two.channels == DENSE[name][::2]
    assert [m.shape for m in two(images).feature_maps] == [m.shape for m in maps[::2]]


@pytest.mark.parametrize("name", DENSE)
def test_upernet_trains_and_comes_back_the_same(name, tmp_path):
    model = upernet(name)
    torch.manual_seed(0)
    own = dict(timm.create_model(name, features_only=True).named_parameters())
    drawn = model.backbone._backbone.named_parameters()
    assert [key for key, p in drawn if not torch.equal(p, own[key])] == [], "initial values were drawn again"

    images, labels = torch.randn(2, 3, 61, 97), torch.randint(0, 5, (2, 61, 97))
    out = model.train()(images, labels=labels)
    assert out.logits.shape == (2, 5, 61, 97)
    out.loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    model.eval().save_pretrained(tmp_path)
    reloaded = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    before, after = model.state_dict(), reloaded.state_dict()
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    with torch.no_grad():
        # Loading builds the model without memory first: what no file holds (a buffer, say) would be garbage here.
        torch.testing.assert_close(reloaded(images).logits, model(images).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DENSE)
@torch.no_grad()
def test_half_precision_runs(name):
    model, images = upernet(name).eval(), torch.randn(1, 3, 64, 64)
    expected = model(images).logits
    found = model.bfloat16()(images.bfloat16()).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


def test_published_weights(tmp_path):
    torch.manual_seed(1)
    options = {"depth": 4, "embed_dim": 16}
    source = timm.create_model("vim_tiny_patch16_224", **options)
    path = tmp_path / "official.pth"
    torch.save({"model": to_published(source.state_dict())}, path)
    model = transformers.TimmBackbone.from_pretrained(
        PYRAMID, out_indices=ALL, pretrained_cfg_overlay={"file": str(path)}, **options
    )
    blocks = model._backbone.body.model.blocks
    for found, expected in zip(blocks.parameters(), source.blocks.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
def test_a_new_process_needs_only_the_import(tmp_path):
    model, images = upernet(PYRAMID).eval(), torch.randn(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, transformers, vision_ssm\n"
        "model = transformers.UperNetForSemanticSegmentation.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    torch.save(model(torch.load(sys.argv[1] + '/images.pt')).logits, sys.argv[1] + '/logits.pt')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(images).logits, rtol=1e-5, atol=1e-6)
