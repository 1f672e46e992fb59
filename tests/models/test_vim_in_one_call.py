"""A Vim runs its first layer and its blocks in few calls, and one by one where somebody looks or has changed it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.layers.test_one_call import calls_of
from vision_ssm.ops.native import MISSING, instruction_set

needs_vectors = pytest.mark.skipif(instruction_set() == "portable", reason="portable code is left alone")
needs_kernel = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@needs_vectors
def test_a_model_runs_its_column_in_one_call() -> None:
    model = timm.create_model("vim_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()
    x, seen = torch.randn(1, 3, 64, 64), []
    with torch.no_grad():
        whole = model(x)
        assert calls_of(lambda: model(x)) == ["vssm_patch_embed_forward", "vssm_vim_blocks_forward"]
        handle = model.blocks[1].register_forward_hook(lambda _, __, out: seen.append(out))
        assert torch.equal(model(x), whole)
        assert len(seen) == 1
        assert len(calls_of(lambda: model(x))) == 4
        handle.remove()
        assert calls_of(lambda: model(x)) == ["vssm_patch_embed_forward", "vssm_vim_blocks_forward"]


@needs_vectors
def test_features_are_taken_from_segments_of_the_column() -> None:
    model = timm.create_model("vim_tiny_patch16_224", img_size=64, depth=4, num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert calls_of(lambda: model.forward_features(x)) == ["vssm_patch_embed_forward", "vssm_vim_blocks_forward"]
        taps = {"indices": [0, 2], "norm": True, "output_fmt": "NLC", "return_prefix_tokens": True}
        calls = calls_of(lambda: model.forward_intermediates(x, **taps))
        assert calls == ["vssm_patch_embed_forward", *["vssm_vim_blocks_forward"] * 3]
        assert len(calls_of(lambda: model.forward_intermediates(x, **taps, stop_early=True))) == 3
        found, maps = model.forward_intermediates(x, **taps)
        for module in model.blocks:
            module.register_forward_hook(lambda *_: None)
        expected, modules_maps = model.forward_intermediates(x, **taps)
    torch.testing.assert_close((found, maps), (expected, modules_maps), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("class_token", ["middle", "head", "double", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@needs_vectors
def test_a_model_embeds_in_one_call_what_its_modules_embed(
    monkeypatch: pytest.MonkeyPatch, class_token: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: False)
    torch.manual_seed(0)
    options = {"img_size": 64, "depth": 2, "num_classes": 5, "class_token": class_token, "stride": 12}
    model = timm.create_model("vim_tiny_patch16_224", **options).eval().to(dtype)
    nn.init.normal_(model.pos_embed)
    x, met = torch.randn(2, 3, 70, 93).to(dtype), []
    with torch.no_grad():
        found = model.forward_features(x)
        assert calls_of(lambda: model.forward_features(x))[0] == "vssm_patch_embed_forward"
        model.patch_embed.proj.register_forward_hook(lambda *_: met.append("proj"))
        expected = model.forward_features(x)
    assert met == ["proj"]
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_position_dropout_turned_on_by_itself_drops() -> None:
    model = timm.create_model("vim_tiny_patch16_224", img_size=64, depth=1, num_classes=0, drop_rate=0.5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.pos_drop.train()
        assert not torch.equal(model(x), model(x))


class Taller(nn.Module):
    """Hands everything but the call on to the module inside."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inside"], name)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = self.inside(x)
        return tokens + 10, grid


@pytest.mark.parametrize(
    ("change", "channels"),
    [
        (lambda m: m.patch_embed.register_forward_pre_hook(lambda _, given: (given[0][:, :3],)), 4),
        (lambda m: setattr(m, "patch_embed", Taller(m.patch_embed)), 3),
        (lambda m: setattr(m, "pos_embed", nn.Parameter(torch.ones(1, 1, 192))), 3),
        (lambda m: setattr(m, "cls_token", nn.Parameter(torch.randn(2, 1, 192))), 3),
        (lambda m: setattr(m.norm, "eps", None), 3),
        (lambda m: setattr(m.patch_embed.proj, "padding", (1, 1)), 3),
    ],
)
def test_a_changed_model_gives_the_same_with_and_without_gradients(
    change: Callable[[nn.Module], object], channels: int
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vim_tiny_patch16_224", img_size=64, depth=2, num_classes=5).eval()
    x = torch.randn(2, channels, 64, 64)
    change(model)
    with torch.no_grad():
        found = model(x)
    assert torch.allclose(found, model(x), rtol=1e-4, atol=1e-4)
