"""ViG's block runs in one call where it is as shipped, and module by module where it is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from tests.layers.test_one_call import calls_of, needs_vectors
from vision_ssm.errors import ConfigError
from vision_ssm.layers import untouched
from vision_ssm.layers.gated_mlp import GatedMlp
from vision_ssm.layers.gla_block import GLABlock
from vision_ssm.layers.gla_mixer import GLAMixer
from vision_ssm.layers.norms import RMSNorm, StreamLayerNorm
from vision_ssm.models import create_model

pytestmark = needs_vectors


def block(norm: Callable[[int], nn.Module] = RMSNorm, **options: Any) -> GLABlock:
    torch.manual_seed(0)
    made = GLABlock(norm(24), GLAMixer(24, head_dim=8, **options), norm(24), GatedMlp(24, 8)).eval()
    for parameter in made.parameters():  # attention begins far below its norm's epsilon, its gates near 1
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return made


def by_modules(model: GLABlock, x: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untouched, "_watched", lambda: True)
        return model(x)  # type: ignore[no-any-return]


def in_one_call(model: GLABlock, x: Tensor) -> bool:
    """Whether a block runs in one call; what it gives is what its modules give."""
    found: list[Tensor] = []
    calls = calls_of(lambda: found.append(model(x)))
    torch.testing.assert_close(found[0], by_modules(model, x), rtol=1e-4, atol=1e-5)
    return calls == ["vssm_gla_block_forward"]


@pytest.mark.parametrize("norm", [RMSNorm, StreamLayerNorm, nn.LayerNorm])
@pytest.mark.parametrize("options", [{}, {"conv_act": True, "quarter": True}, {"out_act": True}])
@pytest.mark.parametrize("training", [False, True])
def test_one_call_gives_what_the_modules_give(norm: type[nn.Module], options: dict[str, bool], training: bool) -> None:
    with torch.no_grad():
        assert in_one_call(block(norm, **options).train(training), torch.randn(2, 5, 7, 24))


def test_the_quarter_is_felt() -> None:
    """Of attention near its norm's epsilon; otherwise the norm would take the factor back."""
    model, x = block(quarter=True), torch.randn(1, 4, 4, 24)
    model.mixer.qkv_proj.weight.data.mul_(1e-2)
    with torch.no_grad():
        whole = model(x)
        assert in_one_call(model, x)
        model.mixer.train()
        assert in_one_call(model, x)
        assert not torch.allclose(model(x), whole, rtol=1e-3, atol=1e-3)


def test_what_no_mixer_is_built_of() -> None:
    with pytest.raises(ConfigError, match="quarter must be True or False, got 'no'"):
        GLAMixer(24, head_dim=8, quarter="no")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a width of 24 does not divide into heads of 10 channels, an even number"):
        GLAMixer(24, head_dim=10)


def test_weights_narrower_than_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: False)
    x = torch.randn(1, 5, 7, 24)
    with torch.no_grad():
        model = block().bfloat16()
        found = model(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, by_modules(model, x), rtol=0.05, atol=0.2)
        with pytest.raises(RuntimeError, match=r"mixed dtype|expected scalar type"):  # torch's own LayerNorm has none
            block(nn.LayerNorm).bfloat16()(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "drop_path", DropPath(1e-9).train()),
        lambda model: setattr(model.mlp.fc2, "bias", nn.Parameter(torch.ones(24))),
        lambda model: setattr(model.mixer.conv, "bias", nn.Parameter(torch.ones(24))),
        lambda model: setattr(model.mixer.conv, "padding_mode", "circular"),
        lambda model: setattr(model.mixer.gate_up, "bias", None),
        lambda model: setattr(model.norm, "eps", None),
        lambda model: setattr(model, "norm2", nn.Identity()),
        lambda model: model.mlp.register_forward_hook(lambda *_: None),
    ],
)
def test_another_block_runs_module_by_module(change: Callable[[GLABlock], object]) -> None:
    model, x = block(), torch.randn(1, 4, 5, 24)
    with torch.no_grad():
        assert in_one_call(model, x)
        change(model)
        assert not in_one_call(model, x)


def test_gradients_come_from_the_modules() -> None:
    model, x = block(), torch.randn(1, 4, 5, 24)
    assert not in_one_call(model, x)
    assert in_one_call(model.requires_grad_(False), x)
    assert not in_one_call(model, x.requires_grad_())


def test_models_of_both_families_run_in_a_call_for_each_block() -> None:
    for name, options, blocks in (
        ("vig_nano", {"depth": 3}, 3),
        ("vig_h_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 16}, 4),
    ):
        model, x = create_model(name, **options).eval(), torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            assert calls_of(lambda model=model, x=x: model(x)) == ["vssm_gla_block_forward"] * blocks


def test_a_model_remembers_its_blocks_and_notices_a_change() -> None:
    """ViG's column describes them once; copies describe their own."""
    model, x = create_model("vig_nano", depth=2).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        assert model.column._known is not None
        copied = copy.deepcopy(model)
        assert copied.column._known is None
        copied.blocks[0].mlp.fc2.weight.mul_(-3)
        assert not torch.allclose(copied(x), before, rtol=1e-3)
        assert torch.equal(model(x), before)
        model.blocks[1].mixer.out_act = False
        assert not torch.equal(model(x), before)
        model.blocks = model.blocks[:1]
        assert calls_of(lambda: model(x)) == ["vssm_gla_block_forward"]
        model.blocks[0].mlp.register_forward_hook(lambda *_: None)
        assert "vssm_gla_block_forward" not in calls_of(lambda: model(x))
