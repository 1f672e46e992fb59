from __future__ import annotations

import pytest
import torch

from vision_ssm.checkpoints import load_published
from vision_ssm.checkpoints.efficient_vmamba import to_ours, to_published
from vision_ssm.errors import CheckpointError
from vision_ssm.models import create_model

SMALL = {"embed_dim": 8, "depths": (1, 2, 3, 1), "d_state": 2, "num_classes": 5}


def small(**options):
    return create_model("efficientvmamba_nano", **{**SMALL, **options})


@pytest.mark.parametrize(
    "options", [{}, {"downsample": "v2"}, {"downsample": "v3"}, {"mlp_ratio": 2.0}, {"stage_norms": True}]
)
def test_there_and_back(options):
    ours = small(**options).state_dict()
    published = to_published(ours)
    assert len(published) == len(ours)
    assert all(name.startswith(("layers.", "patch_embed.", "classifier.", "outnorm")) for name in published)
    back = to_ours(published)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    assert to_published(published).keys() == published.keys()
    assert to_ours(ours).keys() == ours.keys()


def test_the_flat_lists_count_their_permutations():
    published = to_published(small().state_dict())
    assert published["layers.2.3.conv_pw.0.weight"].shape == (128, 32, 1, 1)  # the third block
    assert published["layers.2.5.reduction.weight"].shape == (64, 128)  # 3 blocks and two permutations
    assert published["layers.0.downsample.reduction.weight"].shape == (16, 32)
    assert published["layers.3.1.se.conv_reduce.weight"].shape == (32, 256, 1, 1)
    conv = to_published(small(downsample="v2").state_dict())
    assert conv["layers.2.5.1.weight"].shape == (64, 32, 2, 2) and conv["layers.2.5.3.weight"].shape == (64,)
    assert conv["layers.0.downsample.1.weight"].shape == (16, 8, 2, 2)


def test_the_groups_land_where_the_published_rows_say():
    published = to_published(small().state_dict())
    published["layers.1.blocks.1.op.A_logs"][32:64] = 7.0  # 32 inner channels: the second group
    published["layers.1.blocks.1.op.Ds"][96:] = 3.0
    ours = to_ours(published)
    assert [k for k in range(4) if torch.all(ours["stages.1.blocks.1.mixer.ssm.A_log"][k] == 7)] == [1]
    assert [k for k in range(4) if torch.all(ours["stages.1.blocks.1.mixer.ssm.D"][k] == 3)] == [3]
    published["layers.1.blocks.1.op.Ds"] = torch.ones(129)
    with pytest.raises(CheckpointError, match=r"op\.Ds has 129 rows, which are not 4 groups of one size"):
        to_ours(published)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("layout", [to_published, to_ours])
def test_released_files_load_whatever_wrapped_the_model(prefix, layout):
    source, target = small(), small()
    weights = {prefix + name: tensor for name, tensor in layout(source.state_dict()).items()}
    load_published(target, {"state_dict": weights, "epoch": 290, "optimizer": {"state": {}}})
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_model_of_another_width_is_refused_in_the_names_of_the_file():
    # The repository's detection configuration builds width 96 for the small checkpoint of width 64; that one goes on
    # from random weights there.
    state = to_published(create_model("efficientvmamba_small").state_dict())
    with torch.device("meta"):
        wide = create_model("efficientvmamba_small", embed_dim=96)
    with pytest.raises(CheckpointError, match=r"238 wrong shape: classifier.head.weight is \[1000, 512\] instead of"):
        load_published(wide, {"state_dict": state})
    del state["layers.2.6.norm.bias"]
    state["layers.4.blocks.0.norm.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_published(create_model("efficientvmamba_small"), state)
    assert "1 missing: layers.2.6.norm.bias" in str(caught.value)
    assert "1 unexpected: layers.4.blocks.0.norm.weight" in str(caught.value)
