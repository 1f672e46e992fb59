"""What VMamba promises beside its recorded outputs: options, initial values, decay groups, mixed precision."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.optim import param_groups_weight_decay
from torch import nn

from vision_ssm.checkpoints import hub
from vision_ssm.checkpoints.vmamba import to_published
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.models import create_model
from vision_ssm.models.vmamba import VMamba, VMambaBlock
from vision_ssm.ops import mlp_branch
from vision_ssm.ops.native import MISSING, instruction_set

needs_kernel = pytest.mark.skipif(
    instruction_set() in (None, "portable"), reason=MISSING or "portable code leaves the MLP alone"
)

SMALL = {"img_size": 32, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_classes": 5}


def small(**options):
    torch.manual_seed(0)
    return VMamba(**{**SMALL, **options}).eval()


@needs_kernel
def test_the_mlp_runs_in_one_call_where_nobody_looks(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return mlp_branch(*args)

    monkeypatch.setattr("vision_ssm.ops.mlp_branch", counted)
    model, x = small(drop_path_rate=0.5), torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        found = model(x)
        assert len(calls) == 5
        handles = [block.register_forward_hook(lambda *_: None) for block in model.modules() if isinstance(block, Mlp)]
        expected = model(x)
        assert len(calls) == 5, "hooks must see what passes"
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        model.train()
        model(x)
        assert len(calls) == 6, "only the first block drops nothing"
    model.eval()(x).sum().backward()
    assert len(calls) == 6


@pytest.mark.parametrize("replace", [lambda mlp: nn.Identity(), nn.Sequential, lambda _: Mlp(16, 64), torch.compile])
def test_a_replaced_mlp_is_called(replace):
    model, seen = small(), []
    block = next(m for m in model.modules() if isinstance(m, VMambaBlock))
    block.mlp = replace(block.mlp)
    block.mlp.forward = lambda x: seen.append(x) or x
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert len(seen) == 1


# ---------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan_pattern": "cros"}, "Did you mean 'cross'"),
        ({"out_norm": "batch"}, "out_norm must be one of"),
        ({"act_layer": "swish"}, "act_layer must be one of"),
        ({"conv": False, "conv_bias": True}, "needs the convolution"),
        ({"d_state": 0}, "d_state must be a whole number"),
        ({"ssm_ratio": 0.0}, "leaves no inner channels"),
        ({"mlp_ratio": -1}, "mlp_ratio must be 0"),
        ({"mlp_ratio": 0.01}, "leave at least one channel of 16"),
        ({"gate": "yes"}, "gate must be True or False, got 'yes'"),
        ({"conv": "no"}, "conv must be True or False, got 'no'"),
        ({"pos_embed": 1}, "pos_embed must be True or False, got 1"),
        ({"embed_dim": 1}, "stem='v2' starts with half the width, and embed_dim=1 leaves none of it"),
        ({"stem": "v3"}, "stem must be one of v1, v2, got 'v3'"),
        ({"patch_size": 3}, "positions of 2 or 4 pixels, got patch_size=3; stem='v1' takes any"),
        ({"patch_size": 0}, "patch_size must be a positive whole number"),
    ],
)
def test_bad_options_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"stem": "v1", "patch_size": 3},
        {"stem": "v1", "patch_size": 1},
        {"downsample": "v2"},
        {"mlp_ratio": 0, "gate": True, "d_state": 4, "ssm_ratio": 0.5},
        {"scan_pattern": "cascade", "conv": False, "out_norm": "softmax"},
    ],
    ids=str,
)
def test_combinations_that_work_train(options):
    model = small(**options).train()
    model(torch.randn(2, 3, 32, 40)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_measured_parameter_counts_of_the_options():
    def count(**options):
        with torch.device("meta"):
            return sum(p.numel() for p in create_model("vmamba_tiny_s1l8", **options).parameters())

    blocks = [(96, 2), (192, 2), (384, 8), (768, 2)]
    base = 30_249_064
    assert count() == base
    assert count(conv=False) == base - sum(9 * c * n for c, n in blocks)
    assert count(conv_bias=True) == base + sum(c * n for c, n in blocks)
    assert count(gate=True) == base + sum(c * c * n for c, n in blocks)
    assert count(d_state=16) == base + sum(4 * 15 * c * n + 4 * 30 * c * n for c, n in blocks)
    assert count(out_norm="none") == base - sum(2 * c * n for c, n in blocks)
    assert count(out_norm="conv") == base + sum((9 - 2) * c * n for c, n in blocks)
    assert count(pos_embed=True) == base + 96 * 56 * 56
    for pattern in ("unidirectional", "bidirectional", "cascade"):
        assert count(scan_pattern=pattern) == base


# -------------------------------------------------------------------------------------------------------- positions


@torch.no_grad()
def test_positions_are_resampled_at_run_time():
    model, plain = small(pos_embed=True), small()
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 48, 64)
    assert not torch.allclose(model(x), plain(x), atol=1e-5)
    before = model(x)
    model.set_input_size((48, 64))
    assert model.pos_embed.shape == (1, 16, 12, 16)
    torch.testing.assert_close(model(x), before)
    model.pos_embed.zero_()
    torch.testing.assert_close(model(x), plain(x))


# --------------------------------------------------------------------------------------------- initialisation, decay


def test_initial_values_have_the_published_distributions():
    torch.manual_seed(0)
    model = VMamba(embed_dim=64, depths=(1, 1, 1, 1), d_state=4, ssm_ratio=2.0, pos_embed=True, num_classes=10)
    mixer = model.stages[3].blocks[0].mixer
    ssm, width, inner, rank = mixer.ssm, 512, 1024, 32
    assert torch.equal(ssm.A_log, torch.arange(1.0, 5).log().expand(4, inner, 4))
    assert torch.all(ssm.D == 1)
    assert ssm.x_proj_weight.std().item() == pytest.approx(inner**-0.5 / math.sqrt(3), rel=0.02)
    assert ssm.x_proj_weight.abs().max() <= inner**-0.5
    assert ssm.dt_proj_weight.abs().max() <= rank**-0.5
    assert ssm.dt_proj_weight.std().item() == pytest.approx(rank**-0.5 / math.sqrt(3), rel=0.02)
    steps = F.softplus(ssm.dt_proj_bias.double())
    assert 1e-3 * 0.99 <= steps.min() < 1.1e-3
    assert 0.09 < steps.max() <= 0.1 * 1.01
    for linear in (mixer.in_proj, mixer.out_proj, model.stages[3].blocks[0].mlp.fc1, model.head.fc):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.bias is None or not linear.bias.any()
    bound = 9**-0.5  # torch's default for one 3 x 3 channel
    assert mixer.conv.weight.abs().max() <= bound
    assert mixer.conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert model.stages[3].downsample.conv.bias.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert width == model.num_features


def test_weight_decay_follows_the_published_rule():
    """Exempt there: one-dimensional tensors of the published layout, names that end in '.bias', and pos_embed."""
    model = small(pos_embed=True, gate=True, conv_bias=True)
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    exempt = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {name: p for name, p in model.named_parameters() if id(p) not in exempt}
    expected = {
        ours
        for ours, published in _published_names(model).items()
        if published[1].dim() > 1 and not published[0].endswith(".bias") and published[0] != "pos_embed"
    }
    assert set(decayed) == expected
    kinds = {name.rpartition(".")[2] for name in decayed}
    assert kinds == {"weight", "A_log", "x_proj_weight", "dt_proj_weight", "dt_proj_bias"}


def _published_names(model):
    """Ours -> (published name, published tensor)."""
    state = model.state_dict()
    return dict(zip(state, to_published(state).items(), strict=True))


def test_drop_path_rates_per_block():
    model = small(drop_path_rate=0.4)
    found = [b.drop_path.drop_prob if isinstance(b.drop_path, DropPath) else 0 for s in model.stages for b in s.blocks]
    assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


# -------------------------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize(
    "options", [{}, {"scan_pattern": "cascade"}, {"gate": True, "d_state": 4, "mlp_ratio": 0}], ids=str
)
def test_bfloat16_autocast_stays_finite_and_close(options):
    model = small(**options).train()
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
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


@torch.no_grad()
def test_half_precision_weights():
    model, x = small(), torch.randn(1, 3, 32, 32)
    exact = model(x)
    logits = model.bfloat16()(x.bfloat16())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, atol=0.02, rtol=0.1)


# ------------------------------------------------------------------------------------------------------- pretrained


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A narrow model, and a file holding it under the name of the released one."""
    model = timm.create_model("vmamba_tiny_s1l8", **{**SMALL, "num_classes": 1000}).eval()
    path = tmp_path_factory.mktemp("hub") / "vssm1_tiny_0230s_ckpt_epoch_264.pth"
    published = to_published(model.state_dict())
    torch.save({"model": published, "model_ema": {n: t + 1 for n, t in published.items()}, "epoch": 264}, path)
    return model, path


def pretrained(path, **options):
    return timm.create_model(
        "vmamba_tiny_s1l8", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **{**SMALL, **options}
    ).eval()


def test_from_a_file_by_overlay(official):
    model, path = official
    loaded = pretrained(path, num_classes=1000)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert "state_dict" not in loaded.pretrained_cfg


def test_adapted_to_other_classes_and_channels(official):
    model, path = official
    loaded = pretrained(path, num_classes=5, in_chans=1)
    assert loaded(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    torch.testing.assert_close(
        loaded.patch_embed.conv1.weight, model.patch_embed.conv1.weight.sum(1, keepdim=True), rtol=1e-4, atol=1e-5
    )
    assert pretrained(path, num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize("stage_norms", [False, True])
def test_as_a_feature_extractor(official, stage_norms):
    """A classifier's file has no norms for the maps; they start as ones, as in the published backbone."""
    model, path = official
    x = torch.randn(1, 3, 32, 32)
    found = pretrained(path, features_only=True, stage_norms=stage_norms)(x)
    for one, other in zip(found, model.forward_intermediates(x, intermediates_only=True), strict=True):
        expected = F.layer_norm(other.permute(0, 2, 3, 1), other.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(one, expected if stage_norms else other)


def test_weights_of_another_model_list_what_differs(official):
    _, path = official
    with pytest.raises(CheckpointError, match=r"missing: layers\.0\.blocks\.0\.op\.conv2d\.bias"):
        pretrained(path, conv_bias=True)


def test_offline_names_the_release_the_file_and_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_reachable", lambda host: False)
    with pytest.raises(CheckpointError) as caught:
        timm.create_model("vmamba_tiny_s1l8", pretrained=True, cache_dir=tmp_path, **SMALL)
    message = str(caught.value)
    for part in (
        "vssm1_tiny_0230s_ckpt_epoch_264.pth",
        "github.com/MzeroMiko/VMamba/releases/download/%23v2cls",
        str(tmp_path),
        "pretrained_cfg_overlay",
        "model.checkpoint",
    ):
        assert part in message


def test_a_file_in_the_cache_needs_no_network(official, monkeypatch):
    model, path = official
    monkeypatch.setattr(hub, "_reachable", lambda host: False)
    loaded = timm.create_model(
        "vmamba_tiny_s1l8", pretrained=True, cache_dir=path.parent, **{**SMALL, "num_classes": 1000}
    )
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)


def test_a_failed_download_is_told_and_leaves_nothing(monkeypatch, tmp_path):
    def refuse(url, *_, **__):
        raise OSError("HTTP Error 404: Not Found")

    monkeypatch.setattr(hub, "_reachable", lambda host: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        CheckpointError, match=r"could not get vssmtiny_dp01_ckpt_epoch_292\.pth from .*%23v0cls \(HTTP Error 404"
    ):
        timm.create_model("vmamba_tiny_v0", pretrained=True, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nano_has_no_released_weights():
    with pytest.raises(CheckpointError, match="no weights were published for vmamba_nano"):
        timm.create_model("vmamba_nano", pretrained=True)
