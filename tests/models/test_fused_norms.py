"""Additions joined to norms on the Triton backend: the same function, and the operators where somebody looks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.ops.scan.cases import device_of, needs_triton, relative_error, use
from vision_ssm import ops
from vision_ssm.layers import Block, RMSNorm, VimMixer, make_norm
from vision_ssm.layers.efficient_blocks import DualBranchBlock
from vision_ssm.layers.one_call import add_and_norm
from vision_ssm.models.efficient_vmamba import EfficientVMamba
from vision_ssm.models.vim import Vim
from vision_ssm.models.vmamba import VMamba, VMambaBlock

pytestmark = needs_triton
DEVICE = device_of("triton")


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Run on the kernels; the shapes that went through the fused operator."""
    use(monkeypatch)
    calls: list[tuple[int, ...]] = []
    plain = ops.add_norm

    def counted(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        calls.append(tuple(x.shape))
        return plain(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ops, "add_norm", counted)
    return calls


def column(**options: object) -> Vim:
    """Three blocks: two additions are followed by the next block's norm."""
    torch.manual_seed(0)
    small = {"img_size": 4, "patch_size": 4, "embed_dim": 16, "depth": 3, "d_state": 2, "num_classes": 3}
    return Vim(**{**small, **options}).to(DEVICE)  # type: ignore[arg-type]


def pyramid(family: type[nn.Module]) -> nn.Module:
    """Maps of a single position: the interpreter takes its time over every step of a scan."""
    torch.manual_seed(0)
    options = {"img_size": 4, "embed_dim": 8, "depths": (1, 1, 1, 1), "mlp_ratio": 1.0, "num_classes": 3}
    if family is VMamba:
        options |= {"stem": "v1", "downsample": "v1", "drop_path_rate": 0.2}
    return family(**options, d_state=1).to(DEVICE)


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs and all gradients; what is dropped at random is the same in every call."""
    torch.manual_seed(0)
    model.zero_grad()
    y = model(x)
    (y.float() * torch.randn(y.shape).to(DEVICE)).sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def apart(monkeypatch: pytest.MonkeyPatch, of: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What ``of`` returns with every operation by itself."""
    with monkeypatch.context() as patch:
        patch.setattr(ops, "add_norm_applies", lambda *_: False)
        return of()


def check_same(model: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor, *, half: bool = False) -> None:
    """Outputs and gradients with fusing and without: the same to rounding, in the same dtypes.

    In ``half`` precision the gradients are compared together: some of the smallest are little but rounding.
    """
    ours, theirs = results(model, x), apart(monkeypatch, lambda: results(model, x))
    assert len(ours) == len(theirs) > 1 and [y.dtype for y in ours] == [y.dtype for y in theirs]
    if half:
        ours, theirs = ([y[0], torch.cat([g.float().flatten() for g in y[1:]])] for y in (ours, theirs))
    for found, expected in zip(ours, theirs, strict=True):
        assert relative_error(found, expected) <= (0.02 if half else 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_layer": "layer", "class_token": "none", "global_pool": "avg"},
        pytest.param({"drop_path_rate": 0.5, "layer_scale": 0.5, "direction": "shared"}, marks=pytest.mark.slow),
    ],
)
def test_vim_gives_the_same(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch, fused: list[tuple[int, ...]]
) -> None:
    model = column(**options)
    check_same(model, monkeypatch, images())
    assert fused == [(2, 1 + model.num_prefix_tokens, 16)] * 2


@pytest.mark.parametrize("how", ["cast", "autocast"])
def test_vim_gives_the_same_in_half_precision(
    how: str, monkeypatch: pytest.MonkeyPatch, fused: list[tuple[int, ...]]
) -> None:
    """The stream stays float32, what is added is bfloat16, and so is what is normalised in a model that was cast."""
    model, x = column(depth=2, direction="forward"), images()
    if how == "cast":
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=how == "autocast"):
        check_same(model, monkeypatch, x, half=True)
    assert len(fused) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_mixed_precision_trains_without_nan(dtype: torch.dtype, fused: list[tuple[int, ...]]) -> None:
    """Convolution, scan and norms together, as a trainer runs them; float16 with a scaled loss."""
    model, target = column(depth=2), torch.tensor([0, 2], device=DEVICE)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10, enabled=dtype == torch.float16)
    losses = []
    for _ in range(4):
        with torch.autocast(DEVICE.type, dtype):
            loss = nn.functional.cross_entropy(model(images()).float(), target)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and len(fused) == 4


@pytest.mark.parametrize(("family", "calls"), [pytest.param(VMamba, 4, marks=pytest.mark.slow), (EfficientVMamba, 2)])
def test_the_pyramids_give_the_same(
    family: type[nn.Module], calls: int, monkeypatch: pytest.MonkeyPatch, fused: list[tuple[int, ...]]
) -> None:
    # Behind a BatchNorm that takes its statistics from the batch some gradients are zero but for rounding.
    check_same(pyramid(family).train(family is VMamba), monkeypatch, images())
    assert len(fused) == calls


@pytest.mark.parametrize("how", ["cast", "autocast"])
@pytest.mark.parametrize("kind", ["vmamba", "efficient_vmamba"])
def test_blocks_of_pyramids_give_the_same_in_half_precision(
    kind: str, how: str, monkeypatch: pytest.MonkeyPatch, fused: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    mixer = nn.Linear(16, 16)
    block = VMambaBlock(16, mixer, 2.0, 0.5) if kind == "vmamba" else DualBranchBlock(16, mixer, mlp_ratio=2.0).eval()
    block, x = block.to(DEVICE), torch.randn(4, 2, 3, 16, device=DEVICE)
    if how == "cast":
        block, x = block.bfloat16(), x.bfloat16()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=how == "autocast"):
        check_same(block, monkeypatch, x, half=True)
    assert fused == [(4, 2, 3, 16)]


def _unchanged(model: Vim) -> None:
    pass


def _hook_on_a_norm(model: Vim) -> None:
    model.blocks[1].norm.register_forward_hook(lambda *_: None)


def _other_norm(model: Vim) -> None:
    class Doubled(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model.blocks[2].norm = Doubled(16).to(DEVICE)


def _hook_on_a_block(model: Vim) -> None:
    model.blocks[1].register_forward_hook(lambda _, __, x: 2 * x)


def _hook_on_a_mixer(model: Vim) -> None:
    model.blocks[1].mixer.register_forward_hook(lambda _, __, x: 2 * x)


def _other_block(model: Vim) -> None:
    class Doubled(Block):
        def branch(self, x: Tensor) -> Tensor:
            return 2 * super().branch(x)

    model.blocks[1] = Doubled(make_norm("rms", 16), VimMixer(16, states=2, direction="forward")).to(DEVICE)


def _patched_branch(model: Vim) -> None:
    block = model.blocks[0]
    block.branch = lambda x: 2 * Block.branch(block, x)


def _recomputed(model: Vim) -> None:
    model.set_grad_checkpointing()


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        (_unchanged, 2),
        (_hook_on_a_norm, 0),
        (_other_norm, 0),
        (_hook_on_a_mixer, 0),
        (_hook_on_a_block, 0),
        (_other_block, 0),
        (_patched_branch, 0),
        (_recomputed, 0),
    ],
)
def test_what_looks_inside_or_changes_a_part_is_respected(
    change: Callable[[Vim], None], calls: int, monkeypatch: pytest.MonkeyPatch, fused: list[tuple[int, ...]]
) -> None:
    model = column(direction="forward").eval()
    change(model)

    def logits() -> list[Tensor]:
        with torch.no_grad():
            return [model(images())]

    (ours,), (theirs,) = logits(), apart(monkeypatch, logits)
    torch.testing.assert_close(ours, theirs)
    assert len(fused) == calls


@torch.no_grad()
def test_hooks_on_all_modules_and_mirrored_pairs_are_left_to_the_loop(fused: list[tuple[int, ...]]) -> None:
    column(direction="layerwise", depth=2)(images())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        column(direction="forward")(images())
        block = VMambaBlock(16, nn.Identity(), 2.0, 0.0).to(DEVICE)
        block(torch.randn(1, 1, 2, 16, device=DEVICE))
    finally:
        handle.remove()
    assert not fused
    block(torch.randn(1, 1, 2, 16, device=DEVICE))
    assert fused == [(1, 1, 2, 16)]


def test_a_norm_of_another_kind_is_called(fused: list[tuple[int, ...]]) -> None:
    x, added = torch.randn(2, 5, 6, device=DEVICE), torch.randn(2, 5, 6, device=DEVICE)
    left_alone = [
        nn.LayerNorm(6, elementwise_affine=False),
        nn.LayerNorm((5, 6)),
        nn.Identity(),
        nn.utils.parametrizations.weight_norm(RMSNorm(6), "weight", dim=None),
    ]
    for norm in left_alone:
        total, normalised = add_and_norm(norm.to(DEVICE), x, added)
        assert torch.equal(total, x + added) and torch.equal(normalised, norm(x + added))
    assert not fused
    for norm in (nn.LayerNorm(6), nn.LayerNorm(6, bias=False), make_norm("layer", 6), make_norm("rms", 6)):
        total, normalised = add_and_norm(norm.to(DEVICE), x, added)
        assert torch.equal(total, x + added)
        torch.testing.assert_close(normalised, norm(x + added))
    assert len(fused) == 4


def test_where_torch_rules_on_mixed_dtypes_it_does_so(fused: list[tuple[int, ...]]) -> None:
    x = torch.randn(3, 6, device=DEVICE, dtype=torch.bfloat16)
    norm = nn.LayerNorm(6).to(DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        expected = norm(x + x)
        assert add_and_norm(norm, x, x)[1].dtype == expected.dtype
    assert len(fused) == x.is_cuda  # in autocast on a GPU everything is float32 there
    if x.is_cuda:
        with pytest.raises(RuntimeError):
            norm(x + x)
    else:
        assert torch.equal(add_and_norm(norm, x, x)[1], norm(x + x))
