"""What timm expects of a model, for every Vim. The checks are timm's own test suite's, restated."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules
from timm.models._hub import save_for_hf
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from vision_ssm.errors import BackendError, ConfigError
from vision_ssm.models import create_model, list_models
from vision_ssm.models.registry import takes_size

ALL = timm.list_models("vim_*")


def build(name, **options):
    """A shallow copy for small images: what is checked depends on neither, and the full base model is large."""
    torch.manual_seed(0)
    small = {"depth": 4, "img_size": 32 if name == "vim_nano" else 64}
    return timm.create_model(name, **{**small, **options}).eval()


def images(model, batch=1):
    return torch.randn(batch, model.in_chans, *model.patch_embed.img_size)


def test_the_registry_holds_exactly_these():
    sizes = [f"vim_{size}_patch16{stride}_224" for size in ("base", "small", "tiny") for stride in ("", "_stride8")]
    assert [name for name in list_models() if name.startswith("vim_")] == sorted([*sizes, "vim_nano"])
    assert sorted(set(ALL) - set(list_models())) == sorted(
        f"vim_{s}_patch16_224_pyramid" for s in ("tiny", "small", "base")
    )


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_forward_head_and_features_agree(name):
    model = build(name, num_classes=7)
    x = images(model)
    out = model(x)
    assert out.shape == (1, 7)
    assert torch.isfinite(out).all()
    features = model.forward_features(x)
    assert features.shape[-1] == model.num_features == model.head_hidden_size
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(model.get_classifier()(pooled), out)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(9, "avg")
    assert model(x).shape == (1, 9)
    assert model.num_classes == 9
    assert build(name, num_classes=0)(x).shape == (1, model.num_features)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient_also_when_checkpointed(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name, num_classes=3).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        model(images(model, 2)).square().mean().backward()
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
    assert not list(model.named_buffers()), "a non-persistent buffer would be garbage after meta loading"


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_features_only_and_intermediates(name):
    model = build(name)
    x = images(model)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert [m.shape[1] for m in maps] == info.channels()
    assert [x.shape[-1] // r for r in info.reduction()] == pytest.approx([m.shape[-1] for m in maps], abs=1)
    net = build(name, features_only=True, feature_cls="getter")
    assert [m.shape for m in net(x)] == [m.shape for m in maps]
    for found, expected in zip(net(x), maps, strict=True):
        torch.testing.assert_close(found, expected)
    two = build(name, features_only=True, feature_cls="getter", out_indices=(0, -2))
    assert len(two.model.blocks) == 3
    torch.testing.assert_close(two(x)[1], maps[2])


@torch.no_grad()
def test_intermediates_in_detail():
    model = build("vim_nano")
    x = torch.randn(2, 3, 32, 44)
    pairs = model.forward_intermediates(x, [1, 3], return_prefix_tokens=True, norm=True, intermediates_only=True)
    patches, prefix = pairs[-1]
    assert (patches.shape, prefix.shape) == ((2, 128, 8, 11), (2, 1, 128))
    # Prefix tokens come first in public, wherever the model keeps them, and patches row by row.
    torch.testing.assert_close(torch.cat([prefix, patches.flatten(2).mT], 1), model.forward_features(x))
    nlc = model.forward_intermediates(x, 1, output_fmt="NLC", intermediates_only=True)
    assert [m.shape for m in nlc] == [(2, 88, 128)]
    ran = []
    for j, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, j=j: ran.append(j))
    model.forward_intermediates(x, [0, 1], stop_early=True, intermediates_only=True)
    assert ran == [0, 1]
    with pytest.raises(ConfigError, match="output_fmt must be NCHW or NLC"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_layerwise_features_come_after_pairs():
    model = build("vim_nano", direction="layerwise", depth=6)
    assert [info["module"] for info in model.feature_info] == ["blocks.1", "blocks.3", "blocks.5"]
    net = build("vim_nano", direction="layerwise", depth=6, features_only=True, out_indices=(0, 1))
    assert len(net.model.blocks) == 4
    assert len(net(torch.randn(1, 3, 32, 32))) == 2


@pytest.mark.parametrize(
    ("depth", "taps"), [(24, (5, 11, 17, 23)), (8, (1, 3, 5, 7)), (4, (0, 1, 2, 3)), (2, (0, 1)), (1, (0,))]
)
def test_default_taps_end_the_quarters(depth, taps):
    net = timm.create_model("vim_nano", depth=depth, features_only=True)
    assert net.feature_info.module_name() == [f"blocks.{tap}" for tap in taps]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vim_tiny_patch16_224_pyramid", (96, 64)),
        ("vim_tiny_patch16_224_pyramid", (97, 70)),
        ("vim_nano", (64, 45)),
    ],
)
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (-1,)])
def test_pyramid(name, size, out_indices):
    net = build(name, features_only=True, feature_cls="pyramid", out_indices=out_indices)
    maps = net(torch.randn(2, 3, *size))
    strides = [(4, 8, 16, 32)[index] for index in out_indices]
    assert net.feature_info.reduction() == strides
    assert [tuple(m.shape[-2:]) for m in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_pyramid_limits_are_told():
    with pytest.raises(ConfigError, match="power of two"):
        build("vim_nano", patch_size=12, img_size=24, features_only=True, feature_cls="pyramid")
    with pytest.raises(ConfigError, match="patches that do not overlap"):
        build("vim_tiny_patch16_stride8_224", features_only=True, feature_cls="pyramid")
    with pytest.raises(ConfigError, match="has 4 maps"):
        build("vim_nano", features_only=True, feature_cls="pyramid", out_indices=(4,))


@pytest.mark.parametrize("name", ["vim_nano", "vim_tiny_patch16_224", "vim_tiny_patch16_stride8_224"])
def test_saved_for_the_hub_and_back(name, tmp_path):
    model = build(name, num_classes=3, img_size=48, class_token="head", in_chans=1)
    model.set_input_size(64)
    model.reset_classifier(5, "avg")
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize("class_token", ["middle", "double", "none"])
@torch.no_grad()
def test_symbolic_tracing(class_token):
    model = build("vim_nano", class_token=class_token)
    tracer = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    _, nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    traced = create_feature_extractor(model, return_nodes=nodes[-1:], tracer_kwargs=tracer).eval()
    for size in ((32, 32), (40, 27)):
        x = torch.randn(2, 3, *size)
        # Not bit for bit: the traced graph runs a block's modules one by one, the model the block in one call.
        torch.testing.assert_close(next(iter(traced(x).values())), model(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_compile_and_export_without_graph_breaks():
    model = build("vim_nano", depth=2)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@torch.no_grad()
def test_exported_at_its_own_size_it_takes_others_in_another_process(tmp_path):
    model = build("vim_nano", depth=1, num_classes=3)
    batch, height, width = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "height", "width"))
    shapes = {"x": {0: batch, 2: 4 * height, 3: 4 * width}}
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes)
    x = torch.randn(3, 3, 48, 40)
    torch.testing.assert_close(program.module()(x), model(x))
    torch.export.save(program, tmp_path / "m.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = f"""
import torch, vision_ssm.ops
found = torch.export.load({str(tmp_path / "m.pt2")!r}).module()(torch.load({str(tmp_path / "x.pt")!r}))
torch.save(found, {str(tmp_path / "y.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), model(x))


@pytest.mark.parametrize("name", ["vim_nano", "vmamba_nano", "efficientvmamba_nano", "vig_nano"])
def test_torch_jit_trace_is_refused_plainly(name):
    model = create_model(name).eval()
    told = r"cannot be traced by torch\.jit\.trace.* torch\.export and torch\.compile see"
    with pytest.raises(BackendError, match=told):
        torch.jit.trace(model, torch.randn(1, 3, 32, 32))


def test_built_on_meta_and_filled_later():
    with torch.device("meta"):
        model = timm.create_model("vim_tiny_patch16_224", drop_path_rate=0.1, layer_scale=0.1)
    assert all(p.is_meta for p in model.parameters())
    real = timm.create_model("vim_tiny_patch16_224", drop_path_rate=0.1, layer_scale=0.1)
    model.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), real.eval()(x))


def test_set_input_size_keeps_to_its_patch():
    model = build("vim_nano")
    model.set_input_size((48, 64), patch_size=4)
    assert model.patch_embed.grid_size == (12, 16)
    assert model.pos_embed.shape[1] == 12 * 16 + 1
    with pytest.raises(ConfigError, match="fixed at 4, got 8"):
        model.set_input_size(64, patch_size=8)


def test_reset_classifier_keeps_device_and_dtype_and_refuses_nonsense():
    model = build("vim_nano").bfloat16()
    model.reset_classifier(4)
    assert model.head.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="num_classes must be a whole number of at least 0, got -2"):
        model.reset_classifier(-2)
    with pytest.raises(ConfigError, match="use class_token='none'"):
        model.reset_classifier(4, "max")


def test_other_models_of_timm_are_built_too():
    model = create_model("test_vit", num_classes=3, img_size=32)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ConfigError, match=r"test_vit: .*unexpected keyword argument 'clas_token'"):
        create_model("test_vit", clas_token="none")


def test_which_models_have_an_image_size():
    assert [takes_size(name) for name in ("test_resnet", "test_vit", "vim_nano", "vmamba_nano.some_tag")] == [
        False, True, True, True
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"there is no model 'resnet181'\. Did you mean 'resnet18'"):
        takes_size("resnet181")
