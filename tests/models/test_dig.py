"""Options, sizes, conditions and doors of DiG."""

from __future__ import annotations

import inspect

import pytest
import timm
import torch

from vision_ssm.analysis.model_cost import own_size_cost
from vision_ssm.checkpoints import dig
from vision_ssm.errors import CheckpointError, ConfigError, ShapeError
from vision_ssm.layers.positions import sincos_table
from vision_ssm.models import create_model
from vision_ssm.models.denoisers import DENOISERS, class_of
from vision_ssm.models.described import check_described
from vision_ssm.models.registry import list_models, list_whole_models
from vision_ssm.training.starting import load_start

# What is said where a model is used, not what it is.
USE = {"class_dropout"}


def nano(*, zeros=False, **options):
    torch.manual_seed(0)
    model = create_model("dig_nano", **{"embed_dim": 32, "depth": 4, "img_size": 16, **options})
    for parameter in model.parameters():
        if not zeros and parameter.requires_grad and not parameter.any():  # begun at zero, it would hide the rest
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(height=16, width=16, chans=3):
    torch.manual_seed(1)
    return torch.randn(3, chans, height, width), torch.tensor([0, 500, 999]), torch.tensor([0, 4, 10])


LARGE = ("dig_b2", "dig_l2", "dig_xl2")
ROWS = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in DENOISERS]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_it_builds(name):
    row = DENOISERS[name]
    assert set(row.options) == set(inspect.signature(class_of(name)).parameters) - USE
    assert own_size_cost(name) == (row.input_size[1:], row.params, row.macs)
    assert (row.autoencoder is None) == (row.input_size[0] == 3)


def test_published_numbers_of_parameters():
    counts = {name: round(row.params / 1e6, 2) for name, row in DENOISERS.items()}
    assert counts == {"dig_nano": 0.76, "dig_s2": 33.08, "dig_b2": 130.75, "dig_l2": 465.02, "dig_xl2": 675.95}
    with torch.device("meta"):
        joined = create_model("dig_xl2", skip=True)
    assert round(sum(p.numel() for p in joined.parameters()) / 1e6, 2) == 710.47


def test_it_is_no_model_of_timm_and_known_by_its_name_here():
    assert not any(timm.is_model(name) for name in DENOISERS)
    assert set(DENOISERS) <= set(list_whole_models()) and not set(DENOISERS) & set(list_models())
    with pytest.raises(ConfigError, match=r"there is no model 'dig_s'\. Did you mean 'dig_s2'"):
        create_model("dig_s")
    with pytest.raises(ConfigError, match=r"dig_nano has no option 'dept'\. Did you mean 'depth'"):
        create_model("dig_nano", dept=3)
    with pytest.raises(CheckpointError, match="no weights were published for dig_s2"):
        create_model("dig_s2", pretrained=True)


def test_what_a_file_may_say_of_it():
    check_described("dig_nano", {"num_classes": 3, "img_size": [16, 32], "depth": 8, "skip": True}, 200)
    with pytest.raises(ConfigError, match="dig_nano has no option 'pretrained' that a file may set"):
        check_described("dig_nano", {"pretrained": True}, 200)
    with pytest.raises(ConfigError, match="skip must be of type bool"):
        check_described("dig_nano", {"skip": 1}, 200)


def test_learning_on_from_a_file_of_other_classes(tmp_path):
    torch.manual_seed(0)
    theirs = create_model("dig_nano", num_classes=5)
    torch.save({"model": dig.to_published(theirs.state_dict())}, tmp_path / "theirs.pt")
    model = create_model("dig_nano", num_classes=3)
    (told,) = load_start(model, tmp_path / "theirs.pt")
    assert "with 6 outputs does not fit here; a new one starts from random weights" in told
    assert torch.equal(model.blocks[1].mixer.q_proj.weight, theirs.blocks[1].mixer.q_proj.weight)
    assert model.y_embed.table.weight.shape == (4, 96)


@pytest.mark.slow
def test_a_file_of_it_is_known_by_its_tensors(tmp_path):
    torch.save({"model": dig.to_published(create_model("dig_nano").state_dict())}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"theirs\.pt\. It holds the weights of dig_nano: --model dig_nano\."):
        load_start(create_model("vim_nano"), tmp_path / "theirs.pt")


@torch.no_grad()
def test_any_size_that_divides_into_patches():
    model = nano().eval()
    for height, width in [(16, 16), (2, 2), (6, 20), (20, 6)]:
        x, t, y = batch(height, width)
        assert model(x, t, y).shape == (3, 6, height, width)
    assert create_model("dig_nano", embed_dim=8, depth=1, learn_sigma=False, in_chans=1)(
        *batch(4, 4, chans=1)
    ).shape == (3, 1, 4, 4)
    wide = nano(img_size=(6, 20)).eval()  # a table of its own for that grid
    wide.load_state_dict({**model.state_dict(), "pos_embed": wide.pos_embed})
    torch.testing.assert_close(wide(*batch(6, 20)), model(*batch(6, 20)))
    torch.testing.assert_close(wide.pos_embed, sincos_table((3, 10), 32, wide.pos_embed))


@torch.no_grad()
def test_a_map_and_its_mirror_image_in_the_diagonal_are_walked_alike():
    """Blocks 0 and 2 walk rows and columns: with the same weights they mirror each other, whatever the map's shape."""
    model = nano(depth=3)
    rows, columns = model.blocks[0], model.blocks[2]
    columns.load_state_dict(rows.state_dict())
    x, c = torch.randn(2, 3, 5, 32), torch.randn(2, 32)
    torch.testing.assert_close(columns(x.transpose(1, 2), c), rows(x, c).transpose(1, 2))
    backwards = model.blocks[1]
    backwards.load_state_dict(rows.state_dict())
    torch.testing.assert_close(backwards(x.flip(1, 2), c), rows(x, c).flip(1, 2))


@torch.no_grad()
def test_labels_are_dropped_in_training_or_as_said():
    model = nano(class_dropout=0.5)
    x, t, y = batch()
    dropped = model.eval()(x, t, torch.tensor([10, 4, 10]))
    torch.testing.assert_close(model(x, t, y, drop=torch.tensor([True, False, False])), dropped)
    torch.testing.assert_close(model.train()(x, t, y, drop=torch.tensor([True, False, False])), dropped)
    assert not torch.allclose(model.eval()(x, t, y)[0], dropped[0])
    x, t, y = torch.randn(1, 3, 4, 4).expand(400, -1, -1, -1), torch.full((400,), 7), torch.zeros(400, dtype=torch.long)
    without = model(x[:1], t[:1], torch.tensor([10]))
    share = (model.train()(x, t, y) - without).abs().amax((1, 2, 3)).lt(1e-5).float().mean()
    assert 0.4 < share < 0.6
    share = (model.eval()(x, t, y) - without).abs().amax((1, 2, 3)).lt(1e-5).float().mean()
    assert share == 0


@torch.no_grad()
def test_timesteps_may_lie_between_whole_ones():
    model = nano().eval()
    x, _, y = batch()
    between = [model(x, torch.full((3,), t), y) for t in (10.0, 10.5, 11.0)]
    torch.testing.assert_close(between[0], model(x, torch.full((3,), 10), y))
    assert not any(torch.allclose(between[1], other) for other in (between[0], between[2]))


def test_initial_values_are_the_published_ones():
    model = nano(embed_dim=96, zeros=True)
    x, t, y = batch()
    assert not model(x, t, y).any()
    block = model.blocks[1]
    assert not block.modulation.weight.any() and not block.modulation.bias.any()
    image = torch.randn(1, 96, 4, 4)
    torch.testing.assert_close(block.conv(image), image)
    for weight, gain in ((block.mixer.v_proj.weight, 2**-2.5), (block.mlp.fc1.weight, 1.0)):
        bound = gain * (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert model.t_embed.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.patch_embed.proj.weight.abs().max() <= (6 / (96 + 12)) ** 0.5
    joined = nano(skip=True, skip_zero=True, zeros=True).blocks[3].skip
    torch.testing.assert_close(joined(torch.eye(64)), torch.eye(64)[:, :32])


def test_training_reaches_every_parameter_and_learns():
    model = nano(skip=True, zeros=True).train()
    x, t, y = batch()
    target = torch.randn(3, 6, 16, 16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3, weight_decay=0)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = (model(x, t, y, drop=torch.tensor([False, False, True])) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any().item()) == (name != "pos_embed"), name


def test_recomputing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        model = nano(skip=True)
        model.set_grad_checkpointing(enable)
        model(*batch()).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_half_precision_stays_finite():
    model = nano(skip=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*batch())
    found.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    exact = nano(skip=True).eval()
    whole = nano(skip=True).bfloat16().eval()
    x, t, y = batch()
    with torch.no_grad():
        error = (whole(x.bfloat16(), t, y).float() - exact(x, t, y)).norm() / exact(x, t, y).norm()
    assert error < 0.05


@pytest.mark.slow
@torch.no_grad()
def test_compile_and_export_see_through_it():
    model, given = nano(skip=True).eval(), batch()
    expected = model(*given)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), expected)
    exported = torch.export.export(model, given).module()
    torch.testing.assert_close(exported(*given), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 34}, "embed_dim must be a multiple of 4"),
        ({"embed_dim": 48, "head_dim": 32}, "a width of 48 does not divide into heads of 32 channels"),
        ({"skip": True, "depth": 5}, "skip joins the halves of an even depth of at least 4, got depth=5"),
        ({"skip_zero": True}, "skip=False has none; set skip=True"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"class_dropout": 1.0}, r"class_dropout must be in \[0, 1\)"),
        ({"img_size": 1}, "img_size must be at least one patch of 2 pixels"),
        ({"img_size": 15}, "img_size 15 does not divide into patches of 2x2"),
    ],
)
def test_impossible_options_are_refused_with_the_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        nano(**options)


def test_bad_inputs_are_refused():
    model, (x, t, y) = nano(), batch()
    with pytest.raises(ShapeError, match=r"expected images \[B, 3, H, W\]"):
        model(x[:, :1], t, y)
    with pytest.raises(ShapeError, match="an image of 15x16 does not divide into patches of 2x2"):
        model(x[:, :, 1:], t, y)
    with pytest.raises(ShapeError, match=r"t must be \[3\], one for each image, got \[1\]"):
        model(x, t[:1], y)
    with pytest.raises(ShapeError, match=r"y must be \[3\]"):
        model(x, t, y[:, None])
    with pytest.raises(ShapeError, match=r"drop must be \[3\]"):
        model(x, t, y, drop=torch.tensor(True))
    with pytest.raises(ShapeError, match=r"y must be whole numbers, labels up to 10, got torch\.float32"):
        model(x, t, y.float())
    for labels in ([0, 11, 4], [-1, 10, 4]):
        with pytest.raises(ShapeError, match=rf"y must be from 0 to 10, .*, got {min(labels)} to {max(labels)}"):
            model(x, t, torch.tensor(labels))


@torch.no_grad()
def test_labels_are_not_looked_at_where_they_are_not_there():
    model, (x, t, y) = nano().eval(), batch()
    one_by_one = torch.vmap(lambda x, t, y: model(x[None], t[None], y[None])[0])(x, t, y)
    torch.testing.assert_close(one_by_one, model(x, t, y))
    assert model(x[:0], t[:0], y[:0]).shape == (0, 6, 16, 16)
