from __future__ import annotations

import argparse

import pytest
import torch

from vision_ssm.checkpoints import dig, load_published, read_checkpoint
from vision_ssm.errors import CheckpointError
from vision_ssm.models import create_model


def small(**options):
    return create_model("dig_nano", **{"embed_dim": 16, "depth": 4, "img_size": 8, "skip": True, **options})


def test_there_and_back():
    ours = small().state_dict()
    published = dig.to_published(ours)
    assert len(published) == len(ours) and dig.is_published(published) and not dig.is_published(ours)
    assert {"blocks.3.skip_linear.weight", "blocks.0.attn.gk_proj.1.bias", "y_embedder.embedding_table.weight"} < {
        *published
    }
    back = dig.to_ours(published)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    assert dig.to_published(published).keys() == published.keys()
    assert dig.to_ours(ours).keys() == ours.keys()


def test_training_states_hold_plain_and_averaged_weights(tmp_path):
    source, target = small(), small()
    averaged = dig.to_published(source.state_dict())
    plain = {name: torch.zeros_like(x) for name, x in averaged.items()}
    optimizer = torch.optim.AdamW(source.parameters()).state_dict()
    path = tmp_path / "0400000.pt"
    torch.save({"model": plain, "ema": averaged, "opt": optimizer, "args": argparse.Namespace(lr=1e-4)}, path)
    found = read_checkpoint(path, weights="model_ema")
    assert found.metadata == {"args": {"lr": 1e-4}}
    load_published(target, found.weights)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    load_published(target, torch.load(path, weights_only=False))
    assert not any(parameter.any() for parameter in target.parameters())


def test_what_does_not_fit_is_told_in_the_names_of_the_file():
    state = dig.to_published(small().state_dict())
    del state["blocks.1.attn.gk_proj.0.weight"]
    state["final_layer.linear.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        load_published(small(), state)
    assert "1 missing: blocks.1.attn.gk_proj.0.weight" in str(caught.value)
    assert "final_layer.linear.bias is [3] instead of [24]" in str(caught.value)


def test_a_joined_model_takes_no_file_of_one_that_is_not():
    state = dig.to_published(small(skip=False).state_dict())
    with pytest.raises(
        CheckpointError, match=r"2 missing: blocks\.3\.skip_linear\.bias, blocks\.3\.skip_linear\.weight"
    ):
        load_published(small(), state)


def test_positions_of_another_grid_are_those_of_the_grid():
    source, target = small(), small(img_size=12)
    expected = target.pos_embed.clone()
    load_published(target, dig.to_published(source.state_dict()))
    torch.testing.assert_close(target.pos_embed, expected)
    torch.testing.assert_close(target.blocks[0].mixer.q_proj.weight, source.blocks[0].mixer.q_proj.weight)
