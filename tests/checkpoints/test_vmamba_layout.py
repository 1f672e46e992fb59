import argparse
import sys
import types

import pytest
import torch

from vision_ssm.checkpoints import load_published, read_checkpoint, select_weights
from vision_ssm.checkpoints.vmamba import canonical, to_ours, to_published
from vision_ssm.errors import CheckpointError
from vision_ssm.models.vmamba import VMamba

SMALL = {"img_size": 32, "embed_dim": 8, "depths": (1, 2, 1, 1), "num_classes": 5}
FIRST = {"stem": "v1", "downsample": "v1", "gate": True, "conv_bias": True, "mlp_ratio": 0.0, "d_state": 4}


def small(**options):
    torch.manual_seed(0)
    model = VMamba(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # equal initial values would hide what goes where
    return model


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "options",
    [
        {},
        FIRST,
        {"downsample": "v2", "pos_embed": True},
        {"out_norm": "none", "conv": False, "stage_norms": True},
        {"out_norm": "conv"},
        {"out_norm": "layer_conv", "gate": True},
    ],
    ids=str,
)
def test_there_and_back(options):
    ours = small(**options).state_dict()
    published = to_published(ours)
    assert not published.keys() & ours.keys() - {"pos_embed"}
    same(to_ours(published), ours)
    same(to_ours(ours), ours)
    same(to_published(published), published)
    same(canonical(published), published)
    same(canonical(ours), ours)


def test_names_and_shapes_are_those_of_the_published_class():
    published = to_published(small(out_norm="layer_conv", stage_norms=True).state_dict())
    expected = {
        "patch_embed.0.weight": (4, 3, 3, 3),
        "patch_embed.7.bias": (8,),
        "layers.0.downsample.1.weight": (16, 8, 3, 3),
        "layers.0.downsample.3.weight": (16,),
        "layers.1.blocks.1.op.x_proj_weight": (4, 3, 16),
        "layers.1.blocks.1.op.dt_projs_weight": (4, 16, 1),
        "layers.1.blocks.1.op.dt_projs_bias": (4, 16),
        "layers.1.blocks.1.op.A_logs": (64, 1),
        "layers.1.blocks.1.op.Ds": (64,),
        "layers.1.blocks.1.op.conv2d.weight": (16, 1, 3, 3),
        "layers.1.blocks.1.op.out_norm.0.weight": (16,),
        "layers.1.blocks.1.op.out_norm.2.weight": (16, 1, 3, 3),
        "layers.3.blocks.0.mlp.fc2.bias": (64,),
        "outnorm3.weight": (64,),
        "classifier.norm.weight": (64,),
        "classifier.head.weight": (5, 64),
    }
    assert {name: tuple(published[name].shape) for name in expected} == expected
    alone = to_published(small(out_norm="conv").state_dict())
    assert alone["layers.0.blocks.0.op.out_norm.1.weight"].shape == (8, 1, 3, 3)


def test_directions_land_where_the_published_axes_say():
    published = to_published(small().state_dict())
    published["layers.0.blocks.0.op.A_logs"] = torch.arange(4.0).repeat_interleave(8)[:, None]
    assert to_ours(published)["stages.0.blocks.0.mixer.ssm.A_log"][:, 3, 0].tolist() == [0, 1, 2, 3]


def older(published):
    """The names that the first release's files have."""
    renamed = {}
    for name, tensor in published.items():
        for now, then in (
            ("patch_embed.0.", "patch_embed.proj."),
            ("patch_embed.2.", "patch_embed.norm."),
            ("classifier.norm.", "norm."),
            ("classifier.head.", "head."),
            (".op.", ".self_attention."),
        ):
            name = name.replace(now, then)  # noqa: PLW2901
        renamed[name.replace(".norm.", ".ln_1.") if ".blocks." in name else name] = tensor
    return renamed


def single_file(published):
    """The names and shapes of the repository's single file vmamba.py."""
    renamed = {}
    for name, tensor in published.items():
        if name.endswith((".x_proj_weight", ".dt_projs_weight")):
            renamed[name.replace("_weight", ".weight")] = tensor.flatten(0, 1)
        else:
            numbered = name.replace("downsample.norm.", "downsample.1.").replace(
                "downsample.reduction.", "downsample.2."
            )
            renamed[numbered] = tensor
    return renamed


def convolved(published):
    """Linear layers stored as the 1 x 1 convolutions they once were."""
    linear = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "head.weight")
    return {name: t[..., None, None] if name.endswith(linear) else t for name, t in published.items()}


@pytest.mark.parametrize(
    ("spelling", "options"),
    [(older, FIRST), (single_file, {}), (single_file, FIRST), (convolved, {}), (convolved, FIRST)],
)
def test_other_published_spellings(spelling, options):
    source, target = small(**options), VMamba(**{**SMALL, **options}).eval()
    published = to_published(source.state_dict())
    state = spelling(published)
    assert {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in published.items()}
    load_published(target, {"model": state})
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_wrapped_weights(prefix, key):
    published = to_published(small().state_dict())
    same(select_weights({key: {prefix + name: t for name, t in published.items()}, "epoch": 3}), published)


def test_misfits_are_listed_in_the_names_of_the_file():
    state = to_published(small().state_dict())
    del state["layers.1.blocks.0.op.dt_projs_bias"]
    state["layers.0.blocks.0.extra"] = torch.zeros(1)
    state["layers.0.blocks.0.op.A_logs"] = torch.zeros(32, 16)
    with pytest.raises(CheckpointError) as caught:
        load_published(small(), state)
    message = str(caught.value)
    assert "1 missing: layers.1.blocks.0.op.dt_projs_bias" in message
    assert "1 unexpected: layers.0.blocks.0.extra" in message
    assert "layers.0.blocks.0.op.A_logs is [32, 16] instead of [32, 1]" in message
    with pytest.raises(CheckpointError, match="33 rows, which are not 4 of one size"):
        to_ours({"layers.0.blocks.0.op.Ds": torch.zeros(33)})


@pytest.mark.parametrize("rule", ["grid", "published"])
def test_a_position_map_of_another_size_is_resampled(rule):
    source, target = small(pos_embed=True), small(pos_embed=True, img_size=(48, 64))
    load_published(target, to_published(source.state_dict()), positions=rule)
    expected = torch.nn.functional.interpolate(source.pos_embed, size=(12, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(target.pos_embed, expected, atol=1e-5, rtol=1e-4)
    state = to_published(source.state_dict())
    state["pos_embed"] = state["pos_embed"].flatten(2)
    with pytest.raises(CheckpointError, match=r"pos_embed is \[1, 8, 64\] instead of \[1, 8, 12, 16\]"):
        load_published(target, state)


@pytest.fixture
def training_file(tmp_path, monkeypatch):
    """A file as the authors' trainer writes it: yacs' configuration and a Namespace beside the weights."""

    class CfgNode(dict):
        def __init__(self, values):
            super().__init__(values)
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    source = small()
    weights = to_published(source.state_dict())
    state = {
        "model": weights,
        "model_ema": {name: tensor + 1 for name, tensor in weights.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"base_values": [1e-3]},
        "scaler": {},
        "epoch": 264,
        "max_accuracy": 82.5,
        "max_accuray_ema": 82.6,
        "config": CfgNode({"MODEL": CfgNode({"NAME": "vssm1_tiny_0230s", "DEPTHS": [2, 2, 8, 2]}), "SEED": 0}),
        "args": argparse.Namespace(cfg="x.yaml"),
    }
    path = tmp_path / "vssm.pth"
    torch.save(state, path)
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    return source, path


def test_configuration_objects_need_no_yacs_and_run_no_code(training_file):
    source, path = training_file
    checkpoint = read_checkpoint(path)
    same(to_ours(checkpoint.weights), dict(source.state_dict()))
    assert checkpoint.metadata["config"]["MODEL"]["DEPTHS"] == [2, 2, 8, 2]
    assert checkpoint.metadata["max_accuray_ema"] == 82.6
    assert "yacs.config" not in sys.modules
    averaged = read_checkpoint(path, weights="model_ema").weights
    assert torch.equal(averaged["classifier.head.bias"], source.head.fc.bias + 1)


def test_other_objects_are_still_refused(tmp_path, monkeypatch):
    class Harmless:
        pass

    Harmless.__module__, Harmless.__qualname__ = "yacs.other", "Harmless"
    module = types.ModuleType("yacs.other")
    module.Harmless = Harmless
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.other", module)
    torch.save({"model": {"a": torch.zeros(1)}, "config": Harmless()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"needs more than tensors and plain values: yacs\.other\.Harmless"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_part_of_a_whole_published_model():
    source, target = small(), small()
    published = to_published(source.state_dict())
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    whole = {**{f"backbone.{n}": t for n, t in published.items()}, "decode_head.conv_seg.weight": torch.zeros(3)}
    load_published(target, {"state_dict": {f"module.{n}": t for n, t in whole.items()}}, part="backbone")
    same(dict(target.state_dict()), dict(source.state_dict()))
    with pytest.raises(CheckpointError, match=r"no part 'bakbone', only backbone, decode_head\. Did you mean 'b"):
        load_published(target, whole, part="bakbone")
    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.classifier"):
        load_published(target, whole)
