"""Published weights through timm's doors, from a file made to look like the authors' training state."""

import argparse
import copy

import pytest
import timm
import torch

from vision_ssm.checkpoints import hub
from vision_ssm.checkpoints.vim import to_published
from vision_ssm.errors import CheckpointError

TINY = {"depth": 2, "img_size": 64}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A model, and a file holding it the way the released files do, with different averaged weights beside it."""
    torch.manual_seed(0)
    model = timm.create_model("vim_tiny_patch16_224", **TINY).eval()
    published = to_published(model.state_dict())
    path = tmp_path_factory.mktemp("hub") / "vim_t_midclstok_76p1acc.pth"
    state = {
        "model": published,
        "model_ema": {name: tensor + 1 for name, tensor in published.items()},
        "optimizer": {"state": {0: {"step": 5}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"base_values": [1e-3]},
        "scaler": {},
        "epoch": 299,
        "args": argparse.Namespace(lr=1e-3, model="vim_tiny"),
    }
    torch.save(state, path)
    return model, path


def pretrained(path, **options):
    overlay = {"file": str(path), **options.pop("overlay", {})}
    return timm.create_model(
        "vim_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **{**TINY, **options}
    ).eval()


def test_from_a_file_by_overlay(official):
    model, path = official
    loaded = pretrained(path)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))
    assert "state_dict" not in loaded.pretrained_cfg
    assert loaded.pretrained_cfg["file"] == str(path)


def test_adapted_to_other_classes_channels_and_sizes(official):
    model, path = official
    loaded = pretrained(path, num_classes=5, in_chans=1, img_size=96)
    assert loaded(torch.randn(2, 1, 96, 96)).shape == (2, 5)
    assert torch.equal(loaded.blocks[1].mixer.ssm.A_log, model.blocks[1].mixer.ssm.A_log)
    torch.testing.assert_close(
        loaded.patch_embed.proj.weight, model.patch_embed.proj.weight.sum(1, keepdim=True), rtol=1e-4, atol=1e-5
    )
    larger = copy.deepcopy(model)
    larger.set_input_size(96)
    torch.testing.assert_close(loaded.pos_embed, larger.pos_embed)


def test_as_a_feature_extractor(official):
    model, path = official
    x = torch.randn(1, 3, 64, 64)
    net = pretrained(path, features_only=True, out_indices=(1,))
    expected = model.forward_intermediates(x, [1], intermediates_only=True)[0]
    torch.testing.assert_close(net(x)[0], expected)
    assert "state_dict" not in net.model.pretrained_cfg


def test_weights_of_another_model_list_what_differs(official):
    _, path = official
    with pytest.raises(CheckpointError, match=r"missing: .*layers\.2\."):
        pretrained(path, depth=3)
    with pytest.raises(CheckpointError, match=r"1 unexpected: cls_token; 1 wrong shape: pos_embed is \[1, 17, 192\]"):
        pretrained(path, class_token="none")


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pth does not exist"):
        pretrained(tmp_path / "nothing.pth")


def test_offline_names_repository_file_and_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    with pytest.raises(CheckpointError) as caught:
        timm.create_model("vim_tiny_patch16_224", pretrained=True, cache_dir=tmp_path)
    message = str(caught.value)
    where = ("vim_t_midclstok_76p1acc.pth", "hustvl/Vim-tiny-midclstok")
    for part in (*where, "pretrained_cfg_overlay", "model.checkpoint"):
        assert part in message
    assert caught.value.__suppress_context__, "the hub's own errors would bury the message"


def test_from_the_hub_at_its_pinned_revision(official, monkeypatch):
    model, path = official
    asked = {}

    def fetch(repo, filename, *, revision, cache_dir, local_files_only):
        asked.update(repo=repo, filename=filename, revision=revision)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    loaded = timm.create_model("vim_tiny_patch16_224", pretrained=True, **TINY)
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert asked == {
        "repo": "hustvl/Vim-tiny-midclstok",
        "filename": "vim_t_midclstok_76p1acc.pth",
        "revision": "07c00e0e4ea2973d8e343afdd807128a57bc9fd5",
    }


@pytest.mark.parametrize("name", ["vim_nano", "vim_base_patch16_stride8_224"])
def test_variants_without_released_weights_say_so(name):
    with pytest.raises(CheckpointError, match=f"no weights were published for {name}"):
        timm.create_model(name, pretrained=True)
