"""One pass is what the case says: its dtype, its size, gradients or none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vision_ssm.bench.subject
from vision_ssm.analysis.model_cost import build_for_size
from vision_ssm.bench.settings import Case
from vision_ssm.bench.subject import prepare, reason
from vision_ssm.errors import ConfigError, ShapeError


class Probe(nn.Module):
    """Notes what it is called with, and its gradient once it has one."""

    pretrained_cfg = {"input_size": (3, 8, 8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.calls: list[tuple[object, ...]] = []
        self.gradients: list[torch.Tensor] = []
        self.scale.register_post_accumulate_grad_hook(lambda scale: self.gradients.append(scale.grad.clone()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(x.shape), x.dtype, self.training, torch.is_inference_mode_enabled()))
        self.last = (x * self.scale).flatten(1)
        return self.last


@pytest.fixture
def probe(monkeypatch):
    model = Probe()
    monkeypatch.setattr(vision_ssm.bench.subject, "build_for_size", lambda name, size: model)
    return model


def case(**changes: object) -> Case:
    return Case(
        **{
            **{"model": "probe", "height": 8, "width": 12, "batch": 2, "dtype": "float32", "threads": 1},
            **{"mode": "inference", "device": "cpu"},
            **changes,
        }
    )


def test_inference_is_in_the_dtype_asked_for_and_keeps_nothing(probe):
    prepare(case(dtype="bfloat16"))()
    assert probe.calls == [((2, 3, 8, 12), torch.bfloat16, False, True)]
    assert probe.scale.dtype == torch.bfloat16
    assert not probe.gradients


def test_training_computes_every_gradient_and_drops_it(probe):
    once = prepare(case(mode="training"))
    once()
    once()
    assert probe.calls == [((2, 3, 8, 12), torch.float32, True, False)] * 2
    # d/ds mean((s x)^2) = 2 mean(x^2) at s = 1, and not the double of it in the second pass
    expected = 2 * probe.last.square().mean()
    assert [g.item() for g in probe.gradients] == pytest.approx([expected.item()] * 2, rel=1e-5)
    assert probe.scale.grad is None


def test_a_model_bound_to_a_size_is_built_for_the_size():
    model = build_for_size("test_vit", (96, 128))
    assert model.patch_embed.img_size == (96, 128)
    assert model.pos_embed.shape[1] == 6 * 8 + 1
    model = build_for_size("vim_nano", (64, 32))
    assert model.pos_embed.shape[1] == 16 * 8 + 1
    assert next(build_for_size("test_resnet", (96, 128)).parameters()).device.type == "cpu"


def test_unfused_attention_computes_the_same_the_long_way(monkeypatch):
    models = []

    def build(name, size):
        models.append(build_for_size(name, size))
        return models[-1]

    monkeypatch.setattr(vision_ssm.bench.subject, "build_for_size", build)
    prepare(case(model="test_vit", height=160, width=160))
    prepare(case(model="test_vit+unfused", height=160, width=160))
    fused, unfused = models
    assert {m.fused_attn for m in fused.modules() if hasattr(m, "fused_attn")} == {True}
    assert {m.fused_attn for m in unfused.modules() if hasattr(m, "fused_attn")} == {False}
    images = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        assert torch.allclose(fused(images), unfused(images), atol=1e-5)


def test_nothing_to_unfuse_is_an_error():
    with pytest.raises(ConfigError, match="vim_nano has no fused attention to turn off"):
        prepare(case(model="vim_nano+unfused", height=32, width=32))


def test_reasons_are_one_line_and_tell_memory_apart():
    assert reason(ShapeError("too\n small")) == "too small"
    assert reason(RuntimeError("DefaultCPUAllocator: can't allocate memory")).startswith("out of memory: ")
    assert reason(torch.OutOfMemoryError("CUDA out of memory")).startswith("out of memory: ")
    assert reason(MemoryError()) == "out of memory: MemoryError"
    assert len(reason(ValueError("x" * 1000))) == 240
