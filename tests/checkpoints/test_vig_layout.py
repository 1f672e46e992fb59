from __future__ import annotations

import pytest
import torch

from vision_ssm.checkpoints import load_published, vig, vig_h
from vision_ssm.errors import CheckpointError
from vision_ssm.models import create_model

MODELS = {
    "vig": (vig, "vig_nano", {"embed_dim": 16, "depth": 2}),
    "vig_h": (vig_h, "vig_h_tiny", {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_classes": 5, "stage_norms": True}),
}
EACH = pytest.mark.parametrize("family", MODELS)


def small(family):
    layout, name, options = MODELS[family]
    return layout, create_model(name, **options)


@EACH
def test_there_and_back(family):
    layout, model = small(family)
    ours = model.state_dict()
    published = layout.to_published(ours)
    assert len(published) == len(ours) and layout.is_published(published) and not layout.is_published(ours)
    back = layout.to_ours(published)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    assert layout.to_published(published).keys() == published.keys()
    assert layout.to_ours(ours).keys() == ours.keys()


@EACH
def test_training_states_load_and_averaged_weights_when_asked(family):
    layout, source = small(family)
    _, target = small(family)
    plain = {name: torch.zeros_like(x) for name, x in layout.to_published(source.state_dict()).items()}
    averaged = {f"module.{name}": x for name, x in layout.to_published(source.state_dict()).items()}
    state = {"model": plain, "model_ema": averaged, "epoch": 299, "max_accuray_ema": 77.2}
    load_published(target, state, weights="model_ema")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    load_published(target, state)
    assert not any(parameter.any() for parameter in target.parameters())


@EACH
def test_matrices_saved_as_convolutions_are_read(family):
    layout, source = small(family)
    _, target = small(family)
    published = layout.to_published(source.state_dict())
    kernels = {
        name: x[..., None, None] if x.dim() == 2 and name.endswith(".weight") else x for name, x in published.items()
    }
    assert sum(x.dim() == 4 and x.shape[2:] == (1, 1) for x in kernels.values()) > 10
    load_published(target, kernels)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_older_names_of_the_hierarchical_ones():
    layout, source = small("vig_h")
    _, target = small("vig_h")
    older = {}
    for name, x in layout.to_published(source.state_dict()).items():
        found = name.replace(".norm.", ".ln_1.") if ".blocks." in name else name
        for now, then in {
            ".op.": ".self_attention.",
            "classifier.": "",
            "patch_embed.0": "patch_embed.proj",
            "patch_embed.2": "patch_embed.norm",
        }.items():
            found = found.replace(now, then)
        older[found] = x
    assert {"patch_embed.proj.weight", "norm.weight", "layers.0.blocks.0.ln_1.weight"} < older.keys()
    load_published(target, older)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_what_does_not_fit_is_told_in_the_names_of_the_file():
    layout, model = small("vig")
    state = layout.to_published(model.state_dict())
    del state["blocks.1.attn.gk_proj.0.weight"]
    state["blocks.0.attn.o_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError) as caught:
        load_published(model, state)
    assert "1 missing: blocks.1.attn.gk_proj.0.weight" in str(caught.value)
    assert "blocks.0.attn.o_proj.weight is [3, 3] instead of [16, 16]" in str(caught.value)


def test_a_position_table_of_another_grid_is_resampled():
    layout, model = small("vig")
    state = layout.to_published(model.state_dict())
    state["pos_embed"] = torch.randn(1, 25, 16)
    load_published(model, state)
    assert model.pos_embed.shape == (1, 64, 16)
    torch.testing.assert_close(model.pos_embed[0].mean(0), state["pos_embed"][0].mean(0), rtol=0, atol=0.3)
