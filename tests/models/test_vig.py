"""Options, sizes and timm's doors of ViG and ViG-H."""

from __future__ import annotations

import pytest
import timm
import timm.optim
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from tests.models.learning import check_learning
from tests.recorded import load
from vision_ssm.errors import CheckpointError, ConfigError, ShapeError
from vision_ssm.layers.positions import resample_grid
from vision_ssm.models import create_model

NANO = "vig_nano"


def nano(**options):
    torch.manual_seed(0)
    return create_model(NANO, **{"depth": 2, **options})


def hierarchical(**options):
    torch.manual_seed(0)
    return create_model("vig_h_tiny", **{"depths": (1, 1, 1, 1), "embed_dim": 16, "num_classes": 10, **options})


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (4, 70), (5, 4)])
@torch.no_grad()
def test_any_size_gives_a_token_for_every_patch(height, width):
    model = nano().eval()
    x = torch.randn(2, 3, height, width)
    grid = (-(-height // 4), -(-width // 4))
    final, maps = model.forward_intermediates(x)
    assert final.shape == (2, grid[0] * grid[1], 128)
    assert [m.shape for m in maps] == [(2, 128, *grid)] * 2
    torch.testing.assert_close(model.forward_head(final), model(x))
    torch.testing.assert_close(model.norm(maps[1].flatten(2).mT), final)


def test_a_map_is_walked_row_by_row_whatever_its_shape():
    """The last token of a wide map hears of the first through the forward walk alone, from where the table says."""
    model = nano(depth=1).eval()
    x = torch.randn(1, 3, 8, 64, requires_grad=True)
    model.forward_features(x)[0, -1].sum().backward()
    assert (x.grad[0, :, :, :4].abs().sum() > 0).item()


@torch.no_grad()
def test_positions_are_resampled_at_their_places():
    model = nano(img_size=32)
    table = model.pos_embed
    resampled = model._positions((4, 16))
    torch.testing.assert_close(resampled, resample_grid(table, (8, 8), (4, 16), 4, 4))
    model.set_input_size((16, 64))
    torch.testing.assert_close(model.pos_embed, resampled)


def test_strips_are_embedded_as_the_whole_image():
    for model in (nano().eval(), hierarchical().eval()):
        x = torch.randn(2, 3, 45, 38)
        patches = model.embed_strips(x.split(7, dim=2), (45, 38))
        with torch.no_grad():
            torch.testing.assert_close(model(patches), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [nano, hierarchical])
def test_training_reaches_every_parameter_and_learns(build):
    check_learning(build(drop_path_rate=0.1))


def test_checkpointing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        model = nano().train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(torch.randn(2, 3, 32, 32)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_initial_values_are_the_published_ones():
    torch.manual_seed(0)
    block = create_model("vig_tiny").blocks[3]
    bound = 2**-2.5 * (6 / (192 + 384)) ** 0.5
    assert 0.95 * bound < block.mixer.qkv_proj.weight.abs().max() <= bound
    bound = 2**-2.5 * (6 / (9 + 9 * 192)) ** 0.5
    assert 0.95 * bound < block.mixer.conv.weight.abs().max() <= bound
    assert not block.mixer.gate_up.bias.any() and not block.mixer.g_proj.bias.any()
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    block = create_model("vig_h_tiny").stages[2].blocks[1]
    for linear in (block.mixer.qkv_proj, block.mixer.o_proj, block.mlp.fc2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    bound = 2**-2.5 * (6 / (9 + 9 * 384)) ** 0.5
    assert 0.9 * bound < block.mixer.conv.weight.abs().max() <= bound


@pytest.mark.parametrize("build", [nano, hierarchical])
def test_only_what_is_one_dimensional_does_not_decay(build):
    model = build()
    groups = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    exempt, decayed = ({id(p) for p in group["params"]} for group in groups)
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.dim() > 1), name
    assert len(exempt) + len(decayed) == len(list(model.parameters()))


def test_layer_decay_knows_the_blocks():
    groups = timm.optim.param_groups_layer_decay(nano(), 0.05, layer_decay=0.5)
    assert sorted({group["lr_scale"] for group in groups}) == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 127}, "a width of 127 does not divide into heads of 32 channels, an even number"),
        ({"head_dim": 3}, "does not divide into heads of 3 channels"),
        ({"head_dim": 1}, "head_dim must be a whole number of at least 2"),
        ({"patch_size": 5}, "patch_size must be even, got 5"),
        ({"patch_size": 2}, "patch_size must be a whole number of at least 4"),
        ({"depth": 0}, "depth must be a whole number of at least 1"),
        ({"global_pool": "token"}, "reads the class token"),
        ({"conv_act": "silu"}, "conv_act must be True or False"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"img_size": 3}, "img_size must be at least one patch of 4 pixels"),
        ({"num_heads": 3}, "vig_nano has no option 'num_heads'"),
    ],
)
def test_impossible_options_are_refused_with_the_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        create_model(NANO, **options)


def test_bad_images_are_refused():
    with pytest.raises(ShapeError, match=r"expected images \[B, 3, H, W\]"):
        nano()(torch.randn(2, 1, 32, 32))
    with pytest.raises(ShapeError, match="an image of 3x32 is smaller than a patch of 4x4"):
        nano()(torch.randn(2, 3, 3, 32))
    with pytest.raises(ShapeError, match="dynamic_img_size=False"):
        nano(dynamic_img_size=False)(torch.randn(2, 3, 36, 32))


@torch.no_grad()
def test_symbolic_tracing_compile_and_export():
    model = nano().eval()
    tracer = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    _, nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    traced = create_feature_extractor(model, return_nodes=nodes[-1:], tracer_kwargs=tracer).eval()
    for size in ((32, 32), (40, 27)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(next(iter(traced(x).values())), model(x), rtol=1e-5, atol=1e-6)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    batch, height, width = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "height", "width"))
    shapes = {"x": {0: batch, 2: 4 * height, 3: 4 * width}}
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    other = torch.randn(3, 3, 48, 40)
    torch.testing.assert_close(program.module()(other), model(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [nano, hierarchical])
def test_half_precision_is_close(build):
    model = build().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(x) - exact).norm() < 0.1 * exact.norm()
        found = model.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16 and (found - exact).norm() < 0.1 * exact.norm()


def test_a_released_file_becomes_a_classifier_of_other_classes_and_channels(tmp_path):
    weights = load("tiny", "vig").published_weights()
    path = tmp_path / "best.pth"
    torch.save({"model": weights, "max_accuracy": 77.2}, path)
    model = create_model(
        "vig_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=7, in_chans=1
    )
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    torch.testing.assert_close(
        model.patch_embed.conv1.weight, weights["patch_embed.proj.0.weight"].sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(model.blocks[2].mixer.gate_up.weight, weights["blocks.2.attn.gk_proj.1.weight"])
    with pytest.raises(CheckpointError, match="no weights were published for vig_nano"):
        create_model(NANO, pretrained=True)
