import pytest
import torch

from vision_ssm.checkpoints import load_published
from vision_ssm.checkpoints.vim import to_ours, to_published
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.models.vim import Vim

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5}


def small(**options):
    return Vim(**{**SMALL, **options})


@pytest.mark.parametrize("direction", ["bidirectional", "shared", "forward", "layerwise"])
@pytest.mark.parametrize("class_token", ["middle", "double", "none"])
def test_there_and_back(direction, class_token):
    ours = small(direction=direction, class_token=class_token, norm_layer="layer", layer_scale=0.1).state_dict()
    published = to_published(ours)
    per_layer = {"bidirectional": 17, "shared": 11, "forward": 10, "layerwise": 10}[direction] + 2  # norm bias, gamma
    assert len(published) == {"middle": 7, "double": 8, "none": 6}[class_token] + 1 + 2 * per_layer
    back = to_ours(published)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    assert to_published(published).keys() == published.keys()
    assert to_ours(ours).keys() == ours.keys()


def test_the_directions_land_where_the_published_names_say():
    published = to_published(small().state_dict())
    published["layers.1.mixer.A_b_log"] = torch.full((32, 16), 7.0)
    published["layers.1.mixer.conv1d.weight"] = torch.full((32, 1, 4), 3.0)
    ours = to_ours(published)
    assert torch.all(ours["blocks.1.mixer.ssm.A_log"][1] == 7)
    assert not torch.any(ours["blocks.1.mixer.ssm.A_log"][0] == 7)
    assert torch.all(ours["blocks.1.mixer.conv_weight"][0] == 3)


def test_rotary_checkpoints_are_refused_with_the_reason():
    state = {**to_published(small().state_dict()), "rope.freqs_cos": torch.zeros(4, 4)}
    with pytest.raises(CheckpointError, match=r"rotary position embeddings \(they hold rope.freqs_cos\)"):
        to_ours(state)


def test_a_lone_or_misshapen_backward_direction():
    state = to_published(small().state_dict())
    odd = {**state, "layers.0.mixer.D_b": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"blocks.0.mixer.ssm.D: the two directions differ in shape"):
        to_ours(odd)
    del state["layers.0.mixer.D"]
    with pytest.raises(CheckpointError, match=r"blocks.0.mixer.ssm.D: the backward direction is there"):
        to_ours(state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 1}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("layout", [to_published, to_ours])
def test_bare_and_wrapped_weights_load(wrap, layout):
    source, target = small(), small()
    load_published(target, wrap(layout(source.state_dict())))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_the_averaged_weights_load_when_asked_for():
    source, target = small(), small()
    plain = to_published(source.state_dict())
    state = {"model": {n: t + 1 for n, t in plain.items()}, "model_ema": plain}
    load_published(target, state, weights="model_ema")
    assert torch.equal(target.head.weight, source.head.weight)
    with pytest.raises(CheckpointError, match="Did you mean 'model_ema'"):
        load_published(target, state, weights="model_em")
    with pytest.raises(CheckpointError, match="holds no 'model_ema' weights, only model"):
        load_published(target, {"model": plain}, weights="model_ema")


def test_misfits_are_listed_in_the_names_of_the_file():
    state = to_published(small().state_dict())
    del state["layers.1.mixer.x_proj_b.weight"], state["norm_f.weight"]
    state["layers.0.mixer.extra"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(9, 16)
    with pytest.raises(CheckpointError) as caught:
        load_published(small(), state)
    message = str(caught.value)
    assert "2 missing: layers.1.mixer.x_proj_b.weight, norm_f.weight" in message
    assert "1 unexpected: layers.0.mixer.extra" in message
    assert "1 wrong shape: head.weight is [9, 16] instead of [5, 16]" in message


def test_a_table_of_another_size_is_resampled_either_way():
    source = small(img_size=16)
    state = to_published(source.state_dict())
    grid, official = small(img_size=24), small(img_size=24)
    load_published(grid, state)
    load_published(official, state, positions="published")
    source.set_input_size(24)
    torch.testing.assert_close(grid.pos_embed, source.pos_embed)
    assert torch.equal(official.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert not torch.allclose(official.pos_embed, grid.pos_embed)


def test_tables_that_cannot_be_resampled():
    state = to_published(small().state_dict())
    with pytest.raises(CheckpointError, match="square grids only"):
        load_published(small(img_size=(16, 24)), state, positions="published")
    with pytest.raises(ConfigError, match="positions must be one of grid, published"):
        load_published(small(), state, positions="grids")
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(CheckpointError, match=r"pos_embed is \[1, 16, 16\] instead of \[1, 17, 16\]"):
        load_published(small(), state)


def test_a_stride_16_table_enters_a_stride_8_model_at_its_own_places():
    coarse, fine = small(stride=4, patch_size=4), small(stride=2, patch_size=4)
    load_published(fine, coarse.state_dict())
    rows = torch.cat([fine.pos_embed[:, :24], fine.pos_embed[:, 25:]], 1).reshape(7, 7, 16)
    patches = torch.cat([coarse.pos_embed[:, :8], coarse.pos_embed[:, 9:]], 1).reshape(4, 4, 16)
    torch.testing.assert_close(rows[::2, ::2], patches, atol=1e-6, rtol=1e-5)


def test_models_without_a_published_layout():
    with pytest.raises(ConfigError, match="Linear has no published checkpoints"):
        load_published(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "it is empty"),
        ({"model": {}}, "it is empty"),
        ({"epoch": 3, "lr": 0.1}, "no tensor under epoch, lr"),
    ],
)
def test_dicts_that_hold_no_weights(state, message):
    with pytest.raises(CheckpointError, match=message):
        load_published(small(), state)
