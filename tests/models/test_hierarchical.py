"""What timm expects of a four-stage backbone, for every model of those families: timm's own checks, restated."""

import math

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules
from timm.models._hub import save_for_hf
from timm.models._manipulate import group_parameters
from timm.optim import param_groups_layer_decay
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.families import FAMILIES, named
from vision_ssm.models.hierarchical import Hierarchical, drop_path_rates

TABLES = [named(family.variants).VARIANTS for family in FAMILIES if issubclass(named(family.model), Hierarchical)]
ALL = sorted(row.name for table in TABLES for row in table)
# One of each kind: what the others add is width and depth.
KINDS = [name for name in ALL if name.endswith(("nano", "tiny", "tiny_s1l8", "tiny_v0"))]


def build(name, **options):
    """A narrow and shallow copy: what is checked depends on neither."""
    torch.manual_seed(0)
    small = {"depths": (1, 1, 2, 1), "embed_dim": 16, "img_size": 64}
    return timm.create_model(name, **{**small, **options}).eval()


def images(model, batch=1):
    return torch.randn(batch, model.in_chans, *model.img_size)


def test_the_registry_holds_these_families():
    vmamba = [
        f"vmamba_{name}" for name in ("base_s1l20", "base_s2l15", "base_v0", "nano", "small_s1l20", "small_s2l15")
    ]
    assert [name for name in ALL if name.startswith("vmamba_")] == [
        *vmamba, "vmamba_small_v0", "vmamba_tiny_s1l8", "vmamba_tiny_s2l5", "vmamba_tiny_v0",
    ]  # fmt: skip
    assert len(KINDS) > 2


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_forward_head_and_features_agree(name):
    model = build(name, num_classes=7)
    x = images(model)
    out = model(x)
    assert out.shape == (1, 7)
    assert torch.isfinite(out).all()
    features = model.forward_features(x)
    assert features.shape[-1] == model.num_features == model.head_hidden_size == 128
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((1, 2)))
    torch.testing.assert_close(model.get_classifier()(pooled), out)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(9, "max")
    assert model(x).shape == (1, 9)
    assert model.num_classes == 9
    assert build(name, num_classes=0)(x).shape == (1, 128)


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_gets_a_gradient_also_when_checkpointed(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name, num_classes=3, drop_path_rate=0.2).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        model(images(model, 4)).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, msg=key)


@pytest.mark.parametrize("name", ALL)
def test_configuration_names_existing_parameters(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    state, config = model.state_dict(), model.pretrained_cfg
    assert f"{config['classifier']}.weight" in state
    assert f"{config['first_conv']}.weight" in state
    assert state[f"{config['classifier']}.weight"].shape[0] == config["num_classes"] == model.num_classes
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == config["input_size"]
    assert (data["mean"], data["std"]) == (config["mean"], config["std"])
    assert data["interpolation"] == "bicubic"
    assert all(name in state for name, _ in model.named_buffers()), "others would be garbage after meta loading"


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_features_only_and_intermediates(name):
    model = build(name)
    x = images(model)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert [m.shape[1] for m in maps] == info.channels() == [16, 32, 64, 128]
    first = 2 if name.endswith("nano") else 4
    assert info.reduction() == [first, 2 * first, 4 * first, 8 * first]
    assert [64 // r for r in info.reduction()] == [m.shape[-1] for m in maps] == [m.shape[-2] for m in maps]
    net = build(name, features_only=True)
    for found, expected in zip(net(x), maps, strict=True):
        torch.testing.assert_close(found, expected)
    two = build(name, features_only=True, out_indices=(0, -2))
    assert two.feature_info.channels() == [16, 64]
    assert len(two.model.stages) == 3
    torch.testing.assert_close(two(x)[1], maps[2])


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_maps_are_what_the_named_modules_return(name):
    """What is named in feature_info is the map itself, before the next stage's downsampling."""
    model, seen = build(name), {}
    for info in model.feature_info:
        module = model.get_submodule(info["module"])
        module.register_forward_hook(lambda _, __, out, key=info["module"]: seen.update({key: out}))
    maps = model.forward_intermediates(images(model), intermediates_only=True)
    for info, found in zip(model.feature_info, maps, strict=True):
        torch.testing.assert_close(found, seen[info["module"]].permute(0, 3, 1, 2))


@torch.no_grad()
def test_intermediates_in_detail():
    model = build("vmamba_tiny_s1l8")
    x = torch.randn(2, 3, 64, 92)
    plain = model.forward_intermediates(x, intermediates_only=True)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed[3].permute(0, 2, 3, 1), model.forward_features(x))
    torch.testing.assert_close(normed[2], plain[2])
    nhwc = model.forward_intermediates(x, 2, output_fmt="NHWC", intermediates_only=True)
    assert [m.shape for m in nhwc] == [(2, 4, 6, 64), (2, 2, 3, 128)]
    ran = []
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, i=i: ran.append(i))
    final, maps = model.forward_intermediates(x, [0, 1], stop_early=True)
    assert ran == [0, 1]
    torch.testing.assert_close(final.permute(0, 3, 1, 2), maps[1])
    with pytest.raises(ConfigError, match="output_fmt must be NCHW or NHWC"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", KINDS)
def test_norms_of_the_stages(name):
    """The dense-task backbone: each map has a norm of its own, which the classifier does not see."""
    torch.manual_seed(0)
    model, plain = build(name, stage_norms=True), build(name)
    plain.load_state_dict(model.state_dict(), strict=False)
    x = images(model)
    torch.testing.assert_close(model(x), plain(x))
    for norm, found, expected in zip(
        model.stage_norms,
        model.forward_intermediates(x, intermediates_only=True),
        plain.forward_intermediates(x, intermediates_only=True),
        strict=True,
    ):
        torch.testing.assert_close(found, norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    net = build(name, features_only=True, stage_norms=True, out_indices=(0, 2))
    sum(m.square().sum() for m in net(x)).backward()
    assert all(p.grad is not None for p in net.parameters()), "parts that no map needs should be gone"
    assert len(list(net.model.stage_norms.parameters())) == 4


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (65, 70), (32, 33), (9, 5), (1, 1)])
@torch.no_grad()
def test_any_size_at_run_time(name, size):
    model = build(name, num_classes=3)
    x = torch.randn(2, 3, *size)
    assert model(x).shape == (2, 3)
    for found, info in zip(model.forward_intermediates(x, intermediates_only=True), model.feature_info, strict=True):
        assert tuple(found.shape[2:]) == tuple(math.ceil(side / info["reduction"]) for side in size)


def test_images_that_are_none():
    model = build("vmamba_tiny_s1l8")
    assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 1000)
    for shape in ((3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64)):
        with pytest.raises(ShapeError, match=r"expected images \[B, 3, H, W\] of at least one pixel, got"):
            model(torch.zeros(shape))


@pytest.mark.parametrize("name", KINDS)
def test_saved_for_the_hub_and_back(name, tmp_path):
    model = build(name, num_classes=3, in_chans=1)
    model.set_input_size((96, 64))
    model.reset_classifier(5, "max")
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(again(x), model(x))
    assert again.img_size == (96, 64)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_symbolic_tracing(name):
    model = build(name)
    tracer = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    _, nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    traced = create_feature_extractor(model, return_nodes=nodes[-1:], tracer_kwargs=tracer).eval()
    for size in ((64, 64), (41, 70)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(next(iter(traced(x).values())), model(x))  # a graph has no steps joined in one call


@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith(("nano", "v0"))])
@torch.no_grad()
def test_compile_and_export_without_graph_breaks(name):
    model = build(name, depths=(1, 1, 1, 1))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("name", KINDS)
def test_built_on_meta_and_filled_later(name):
    with torch.device("meta"):
        model = build(name, drop_path_rate=0.1, stage_norms=True)
    assert all(p.is_meta for p in model.parameters())
    real = build(name, drop_path_rate=0.1, stage_norms=True)
    model.load_state_dict(real.state_dict(), assign=True)
    x = images(real)
    torch.testing.assert_close(model.eval()(x), real(x))


@pytest.mark.parametrize("name", KINDS)
def test_layer_groups_cover_the_network_in_order(name):
    model = build(name)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["patch_embed.conv1.weight"] == 0
    order = [layers[f"stages.{i}.blocks.{j}.{part}"] for i, j, part in _first_parameters(model)]
    assert order == [1, 2, 3, 4, 5]
    assert layers["stages.1.downsample.norm.weight"] == layers["stages.1.blocks.0." + _first_parameters(model)[1][2]]
    assert layers["norm.weight"] == 5  # with what comes before it, as in timm's own models
    assert layers["head.fc.weight"] > 5
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def _first_parameters(model):
    """(stage, block, name of a parameter) of every block."""
    return [
        (i, j, next(name for name, _ in block.named_parameters()))
        for i, stage in enumerate(model.stages)
        for j, block in enumerate(stage.blocks)
    ]


def test_reset_classifier_keeps_device_and_dtype_and_refuses_nonsense():
    model = build("vmamba_tiny_s1l8").bfloat16()
    model.reset_classifier(4)
    assert model.head.fc.weight.dtype == torch.bfloat16
    assert model.head.fc.weight.std() < 0.03
    with pytest.raises(ConfigError, match="num_classes must be a whole number of at least 0, got -2"):
        model.reset_classifier(-2)
    with pytest.raises(ConfigError, match=r"num_classes must be a whole number of at least 0, got 2\.5"):
        model.reset_classifier(2.5)
    with pytest.raises(ConfigError, match="Did you mean 'avg'"):
        model.reset_classifier(4, "avgg")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (2, 2, 2)}, "one number for each of the four stages"),
        ({"depths": (2, 2, 0, 2)}, "depths must be positive whole numbers"),
        ({"embed_dim": 0}, "embed_dim must be a whole number of at least 1"),
        ({"embed_dim": 16.0}, "embed_dim must be a whole number of at least 1, got 16.0"),
        ({"depths": 4}, "depths must be positive whole numbers, got 4"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1.0"),
        ({"drop_path_rate": "high"}, "drop_path_rate must be a finite number, got 'high'"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a finite number, got '4'"),
        ({"mlp_ratio": math.nan}, "mlp_ratio must be a finite number, got nan"),
        ({"ssm_ratio": math.inf}, "ssm_ratio must be a finite number, got inf"),
        ({"ssm_ratio": "2"}, "ssm_ratio must be a finite number, got '2'"),
        ({"stage_norms": "no"}, "stage_norms must be True or False, got 'no'"),
        ({"drop_rate": -0.1}, r"drop_rate must be in \[0, 1\), got -0.1"),
        ({"num_classes": -1}, "num_classes must be a whole number of at least 0"),
        ({"global_pool": "token"}, "global_pool must be one of avg, max, avgmax, catavgmax, ''"),
        ({"img_size": (64, 0)}, "img_size must be a positive whole number"),
        ({"downsample": "v4"}, "downsample must be one of v1, v2, v3"),
        ({"output_stride": 16}, "has no option 'output_stride': the strides of its maps are fixed"),
        ({"features_only": True, "feature_cls": "pyramid"}, "are a pyramid without feature_cls='pyramid'"),
        ({"drop_path": 0.1}, "has no option 'drop_path'. Did you mean 'drop_path_rate'"),
    ],
)
def test_bad_options_are_told(name, options, message):
    if name.startswith("vig_h") and options.keys() & {"mlp_ratio", "ssm_ratio", "downsample"}:
        message = "vig_h_tiny has no option"
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


def test_stochastic_depth_grows_linearly_over_all_blocks():
    rates = drop_path_rates(0.3, (1, 1, 2, 1))
    assert [len(stage) for stage in rates] == [1, 1, 2, 1]
    assert [rate for stage in rates for rate in stage] == pytest.approx(torch.linspace(0, 0.3, 5).tolist())
