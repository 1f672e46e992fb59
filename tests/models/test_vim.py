"""What Vim promises beside its recorded outputs: options, sizes, initial values, decay groups, mixed precision."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models._features_fx import create_feature_extractor
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.untouched import untouched
from vision_ssm.models import create_model
from vision_ssm.models.vim import Vim

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_classes": 5}


def small(**options):
    torch.manual_seed(0)
    return Vim(**{**SMALL, **options}).eval()


def count(name, **options):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name, **options).parameters())


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({"class_token": "none"}, 7_147_624),
        ({"class_token": "double"}, 7_148_392),
        ({"direction": "forward"}, 6_419_944),
        ({"direction": "layerwise"}, 6_419_944),
        ({"direction": "shared"}, 6_567_400),
        ({"norm_layer": "layer"}, 7_152_808),
        ({"layer_scale": 1e-4}, 7_152_616),
        ({"img_size": 384}, 7_220_968),
        ({"img_size": (224, 320)}, 7_164_136),
    ],
)
def test_measured_parameter_counts_of_the_options(options, params):
    assert count("vim_tiny_patch16_224", **options) == params


def test_nano_is_about_a_million():
    assert 0.9e6 < count("vim_nano") < 1.2e6


# ------------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("class_token", ["middle", "head", "double", "none"])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (17, 31), (4, 4), (5, 64)])
@torch.no_grad()
def test_any_size_at_run_time(class_token, size):
    model = small(class_token=class_token)
    images = torch.randn(2, 3, *size)
    assert model(images).shape == (2, 5)
    grid = [math.ceil(n / 4) for n in size]
    assert model.forward_features(images).shape == (2, grid[0] * grid[1] + model.num_prefix_tokens, 16)
    # A ragged image is the zero-padded one.
    torch.testing.assert_close(model(images), model(F.pad(images, (0, -size[1] % 4, 0, -size[0] % 4))))


@torch.no_grad()
def test_run_time_resampling_equals_a_model_built_for_the_size():
    model, images = small(), torch.randn(1, 3, 24, 40)
    before = model(images)
    model.set_input_size((24, 40))
    assert model.pos_embed.shape == (1, 61, 16)
    torch.testing.assert_close(model(images), before)


def test_the_class_token_sits_in_the_middle_of_the_tokens_of_the_moment():
    """Only what the class token's row holds differs between two models whose class tokens differ."""
    model, images = small(), torch.randn(1, 3, 16, 28)
    with torch.no_grad():
        first = model._embed(images)[0]
        model.cls_token.add_(1.0)
        second = model._embed(images)[0]
    changed = (first - second).abs().sum(-1).nonzero()[:, 1].tolist()
    assert changed == [28 // 2]


def test_no_images_give_no_logits():
    assert small()(torch.zeros(0, 3, 16, 16)).shape == (0, 5)


def test_dynamic_img_size_can_be_refused():
    with pytest.raises(ShapeError, match="dynamic_img_size=False"):
        small(dynamic_img_size=False)(torch.randn(1, 3, 16, 20))


@pytest.mark.parametrize("size", [(3, 16), (16, 2)])
def test_an_image_smaller_than_a_patch(size):
    with pytest.raises(ShapeError, match="smaller than a patch of 4x4"):
        small()(torch.randn(1, 3, *size))


# ---------------------------------------------------------------------------------------------------------- readout


@torch.no_grad()
def test_what_each_pooling_reads():
    images = torch.randn(2, 3, 16, 16)
    model = small(class_token="none")
    tokens = model.forward_features(images)
    logits = model.head(tokens)
    for pool, expected in {
        "avg": model.head(tokens.mean(1)),
        "last": logits[:, -1],
        "max": logits.amax(1),
        "": logits,
    }.items():
        model.global_pool = pool
        torch.testing.assert_close(model(images), expected)
    for class_token in ("middle", "head", "double"):
        model = small(class_token=class_token)
        tokens = model.forward_features(images)
        torch.testing.assert_close(model(images), model.head(tokens[:, : model.num_prefix_tokens].mean(1)))
        model.reset_classifier(3, "avg")
        torch.testing.assert_close(model(images), model.head(tokens[:, model.num_prefix_tokens :].mean(1)))


@torch.no_grad()
def test_max_is_the_maximum_of_logits_and_not_of_features():
    model = small(class_token="none", global_pool="max")
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(model(images), model.head(model.forward_features(images).amax(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": "none", "global_pool": "token"}, "reads the class token, but class_token='none'"),
        ({"global_pool": "max"}, "use class_token='none'"),
        ({"class_token": "head", "global_pool": "last"}, "use class_token='none'"),
        ({"global_pool": "mean"}, "global_pool must be one of token, avg, max, last, ''"),
        ({"class_token": "midle"}, "Did you mean 'middle'"),
        ({"direction": "layerwise", "depth": 5}, "depth must be even, got 5"),
        ({"direction": "bidir"}, "direction must be one of bidirectional, shared, forward, layerwise"),
        ({"norm_layer": "rmsnorm"}, "norm_layer must be one of rms, layer"),
        ({"embed_dim": 0}, "embed_dim must be a whole number of at least 1"),
        ({"depth": 1.5}, "depth must be a whole number of at least 1"),
        ({"num_classes": -1}, "num_classes must be a whole number of at least 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"img_size": -16}, "img_size must be a positive whole number"),
        ({"img_size": 2}, "img_size must be at least one patch of 4 pixels"),
        ({"in_chans": 0}, "in_chans must be positive"),
        ({"drop_rate": "0.1"}, "drop_rate must be a finite number, got '0.1'"),
        ({"halve_output": "no"}, "halve_output must be True or False, got 'no'"),
    ],
)
def test_impossible_options_say_why(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_unknown_options_name_the_nearest_through_both_doors():
    import timm

    for door in (create_model, timm.create_model):
        with pytest.raises(ConfigError, match=r"vim_nano has no option 'clas_token'.*'class_token'"):
            door("vim_nano", clas_token="none")
    with pytest.raises(ConfigError, match=r"no model 'vim_tny_patch16_224'.*'vim_tiny_patch16_224'"):
        create_model("vim_tny_patch16_224")


# -------------------------------------------------------------------------------------------------------- layerwise


@torch.no_grad()
def test_layerwise_runs_every_second_layer_on_the_reversed_sequence_and_doubles_the_stream():
    model = small(direction="layerwise", class_token="none")
    forwards = small(direction="forward", class_token="none")
    forwards.load_state_dict(model.state_dict())
    x = torch.randn(2, 16, 16)
    expected = x
    for there, back in zip(forwards.blocks[::2], forwards.blocks[1::2], strict=True):
        expected = 2 * expected + there.branch(expected) + back.branch(expected.flip(1)).flip(1)
    for step in model._steps():
        x = step(x)
    torch.testing.assert_close(x, expected)


# --------------------------------------------------------------------------------------- training: rates and decay


@pytest.mark.parametrize("depth", [1, 4, 24])
def test_drop_path_schedule(depth):
    model = small(depth=depth, drop_path_rate=0.2)
    rates = [b.drop_path.drop_prob if isinstance(b.drop_path, DropPath) else 0.0 for b in model.blocks]
    assert rates == pytest.approx([0.2 * j / max(depth - 1, 1) for j in range(depth)])


def test_drop_path_drops_the_mixer_output_of_whole_images():
    block = small(drop_path_rate=0.5).train().blocks[-1]
    x = torch.randn(64, 5, 16)
    added = block(x) - x
    dropped = (added == 0).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    torch.testing.assert_close(added[~dropped], 2 * block.mixer(block.norm(x))[~dropped], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("direction", ["bidirectional", "shared", "forward", "layerwise"])
def test_weight_decay_is_the_published_one(direction):
    """timm's rule on the published names: no decay for vectors, biases, tokens and positions; A_log decays."""
    from vision_ssm.checkpoints.vim import to_published

    model = small(direction=direction, layer_scale=0.1)
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    flags = {name: torch.full_like(p, float(id(p) in decayed)) for name, p in model.named_parameters()}
    for name, flag in to_published(flags).items():
        plain = flag.dim() == 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
        assert bool(flag.max()) is not plain, name


def test_layer_decay_groups_follow_the_depth():
    model = small()
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.head.weight)] == 1
    assert scale[id(model.norm.weight)] == pytest.approx(0.5)
    assert [scale[id(b.mixer.ssm.A_log)] for b in model.blocks] == pytest.approx([0.5**k for k in (4, 3, 2, 1)])
    assert {scale[id(p)] for p in (model.pos_embed, model.cls_token, model.patch_embed.proj.weight)} == {0.5**5}


def test_initial_values_outside_the_mixers():
    torch.manual_seed(0)
    model = create_model("vim_tiny_patch16_224")
    for tensor, std in (
        (model.pos_embed, 0.02),
        (model.cls_token, 0.02),
        (model.head.weight, 0.02),
        (model.patch_embed.proj.weight, (3 * 16 * 16) ** -0.5),
    ):
        assert tensor.std().item() == pytest.approx(std, rel=0.15)
    assert not model.patch_embed.proj.bias.any()
    assert not model.head.bias.any()
    assert all(torch.all(b.norm.weight == 1) for b in model.blocks)
    bound = 384**-0.5 / 24**0.5
    assert all(0.9 * bound < b.mixer.out_proj.weight.abs().max() <= bound for b in model.blocks)
    assert all(torch.all(b.mixer.ssm.dt_proj_bias[1] == 0) for b in model.blocks)


# -------------------------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("direction", ["bidirectional", "layerwise"])
def test_training_in_bfloat16_autocast_stays_finite_and_close(direction):
    model = small(direction=direction, depth=6).train()
    images, targets = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    exact = F.cross_entropy(model(images), targets)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(exact.item(), rel=0.02)
    assert losses[-1] < losses[0]


def test_the_residual_stream_is_float32_whatever_the_rest_is():
    seen = []
    images = torch.randn(1, 3, 16, 16)
    model = small()
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    logits = model.bfloat16()(images.bfloat16())
    assert set(seen) == {torch.float32}
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


# ------------------------------------------------------------------------------------------------------- final norm


@pytest.mark.parametrize("norm_layer", ["rms", "layer"])
@pytest.mark.parametrize("class_token", ["middle", "head", "double"])
def test_logits_and_gradients_are_those_of_all_tokens_normalised(class_token, norm_layer):
    """forward normalises the class tokens only; forward_features, which forward_head is given here, all."""
    model, images = small(class_token=class_token, norm_layer=norm_layer), torch.randn(2, 3, 16, 20)

    def run(logits):
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        return logits.detach(), gradients

    assert untouched(model, inside=True)
    torch.testing.assert_close(run(model(images)), run(model.forward_head(model.forward_features(images))))


def test_who_looks_at_the_final_norm_sees_every_token():
    model, images, seen = small(), torch.randn(2, 3, 16, 16), []
    expected = model(images)
    handle = model.norm.register_forward_hook(lambda *args: seen.append(args[2].shape))
    torch.testing.assert_close(model(images), expected)
    handle.remove()
    with torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: seen.append(out.shape) if module is model.norm else None
    ):
        model(images)
    assert seen == [(2, 17, 16)] * 2
    assert create_feature_extractor(model, ["norm"])(images)["norm"].shape == (2, 17, 16)


def test_replaced_parts_are_called():
    class Doubling(Vim):
        def forward_features(self, x):
            return 2 * super().forward_features(x)

    images = torch.randn(1, 3, 16, 16)
    doubling, plain = Doubling(**SMALL).eval(), small()
    doubling.load_state_dict(plain.state_dict())
    features = plain.forward_features(images)
    torch.testing.assert_close(doubling(images), plain.forward_head(2 * features))
    plain.forward_features = lambda x: features * 0
    torch.testing.assert_close(plain(images), plain.forward_head(features * 0))
    plain = small()
    plain.norm = torch.nn.Softmax(dim=1)  # over the tokens: all of them are needed
    torch.testing.assert_close(plain(images), plain.forward_head(plain.forward_features(images)))
