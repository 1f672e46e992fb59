"""A block of gated linear attention in one call against the float64 composition of its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.gla_block.cases import cast, composed, draw_map, random_block
from tests.ops.scan.cases import FLOORS, needs_kernel, relative_error
from tests.ops.vim_block.cases import multiplies_pairs, rounded
from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.ops import GlaBlock, gla_block, gla_block_applies
from vision_ssm.ops.gla_block import cpu, reference
from vision_ssm.ops.native import instruction_set

pytestmark = needs_kernel
needs_vectors = pytest.mark.skipif(instruction_set() == "portable", reason="portable code is left alone")


def check(x: Tensor, block: GlaBlock) -> None:
    """An error of at most twice that of plain operations in float32 with products as the kernel's, plus the floor."""
    half = block.fc1.dtype == torch.bfloat16 and multiplies_pairs()
    with torch.no_grad():
        found = cpu.forward(x, block)
        exact = composed(x.double(), cast(block, torch.float64))
        plain = composed(x.float(), cast(block, torch.float32), rounded if half else lambda x: x).to(x.dtype)
    assert found.dtype == x.dtype
    assert found.shape == x.shape
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact) + FLOORS[torch.float32]


@pytest.fixture(autouse=True)
def _no_tiles_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "heads"), [((1, 1, 1, 2), 1), ((1, 7, 1, 6), 1), ((2, 3, 5, 24), 3), ((4, 9, 16, 50), 1)]
)
def test_matches_the_composition(
    instruction_set: str, threads: int, dtype: torch.dtype, shape: tuple[int, ...], heads: int
) -> None:
    """Tiles, heads and images shared by threads or not; maps that are all edge; panels and pairs that are not full."""
    check(draw_map(*shape).to(dtype), cast(random_block(shape[-1], heads, hidden=3 * shape[-1] + 1), dtype))


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(("conv_act", "out_act"), [(False, False), (True, False), (False, True)])
def test_forms_with_weights_narrower_than_the_stream(norm: str, conv_act: bool, out_act: bool) -> None:
    block = random_block(20, 2, norm=norm, conv_act=conv_act, out_act=out_act)
    x = draw_map(2, 6, 13, 20) + 1
    check(x, block)
    check(x, cast(block, torch.bfloat16))


def test_strided_maps() -> None:
    block = random_block(20, 2)
    check(draw_map(2, 5, 6, 40)[..., 7:27], block)
    check(draw_map(20, 6, 5, 2).permute(3, 2, 1, 0), block)


def test_gates_of_any_size() -> None:
    """Logits far from 0: gates that forget everything, and gates that forget nothing."""
    block = random_block(24, 3)
    check(draw_map(1, 12, 12, 24), block._replace(gate_bias=torch.linspace(-4000, 200, 24)))


def test_equal_calls_give_equal_results(threads: int) -> None:
    x, block = draw_map(2, 15, 15, 24), random_block(24, 3)
    with torch.no_grad():
        runs = [cpu.forward(x, block) for _ in range(3)]
    assert all(torch.equal(runs[0], run) for run in runs[1:])


@needs_vectors
def test_stands_back_where_it_would_be_wrong_or_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    x, block = draw_map(1, 3, 4, 16), random_block(16, 2)
    assert gla_block_applies(x, block)
    assert not gla_block_applies(x.double(), block)
    assert not gla_block_applies(x.double(), cast(block, torch.float64))
    assert not gla_block_applies(x.bfloat16(), block)
    assert not gla_block_applies(x.to("meta"), block)
    assert not gla_block_applies(x[:0], block)
    assert not gla_block_applies(x[0], block)
    assert not gla_block_applies(x[..., :15], block)
    assert not gla_block_applies(torch._neg_view(x), block)
    assert not gla_block_applies(x, block._replace(norm=block.norm._replace(kind="batch")))
    assert not gla_block_applies(x, block._replace(g_norm=block.g_norm._replace(kind="layer")))
    with torch.autocast("cpu", torch.bfloat16):
        assert not gla_block_applies(x, block)
    with FlopCounterMode(display=False):
        assert not gla_block_applies(x, block)
    block.g_bias.requires_grad_()
    assert not gla_block_applies(x, block)
    with torch.no_grad():
        assert gla_block_applies(x, block)
    half = cast(random_block(16, 2), torch.bfloat16)
    assert gla_block_applies(x, half)
    assert gla_block_applies(x.bfloat16(), half)
    assert not gla_block_applies(x.requires_grad_(), half)
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: True)
    assert not gla_block_applies(x.detach(), half)


def test_portable_code_is_left_alone(instruction_set: str) -> None:
    """It is slower than the modules."""
    assert gla_block_applies(draw_map(1, 3, 4, 16), random_block(16)) == (instruction_set != "portable")


def test_what_does_not_fit_is_told() -> None:
    x, block = draw_map(1, 3, 4, 16), random_block(16, 2)
    for wrong, message in (
        (block._replace(o_proj=torch.zeros(8, 16)), r"o_proj must be \[16, 16\] to fit .* got \[8, 16\]"),
        (block._replace(conv=torch.zeros(16, 1, 5, 5)), r"conv must be \[16, 1, 3, 3\]"),
        (block._replace(fc1=torch.zeros(7, 16)), r"takes gate_down \[R, C\] and fc1 \[2I, C\] .* and \[7, 16\]"),
        (block._replace(heads=3), "16 channels do not divide into 3 heads"),
        (block._replace(fc2=None), "expects a tensor for fc2, got None"),
        (block._replace(g_proj=block.g_proj.to("meta")), "one device, got g_proj on meta"),
    ):
        with pytest.raises(ShapeError, match=message):
            gla_block(x, wrong)
    with pytest.raises(ShapeError, match=r"takes a map \[B, H, W, C\] of a channel at least, got \[3, 4, 16\]"):
        gla_block(x[0], block)
    with pytest.raises(ConfigError, match="of the kinds rms and layer"):
        gla_block(x, block._replace(norm=block.norm._replace(kind="batch")))


def test_the_kernel_called_by_itself_refuses_what_does_not_fit() -> None:
    x, block = draw_map(1, 3, 4, 16), random_block(16, 2)
    for wrong in (
        block._replace(fc2=torch.zeros(16, 12)),
        block._replace(g_bias=block.g_bias.bfloat16()),
        block._replace(g_norm=block.g_norm._replace(weight=torch.ones(7))),
    ):
        with pytest.raises(ShapeError):
            cpu.forward(x, wrong)
    for stream in (x[:0], x.double()):
        with pytest.raises(ShapeError, match="the kernel"):
            cpu.forward(stream, block)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("act", [False, True])
def test_the_reference_is_its_parts(norm: str, act: bool) -> None:
    block = cast(random_block(12, 2, norm=norm, conv_act=act, out_act=not act), torch.float64)
    x = draw_map(2, 4, 5, 12).double()
    torch.testing.assert_close(reference.forward(x, block), composed(x, block))


def test_where_no_call_applies_it_is_the_reference() -> None:
    """Other dtypes, no image, and gradients."""
    x, block = draw_map(1, 3, 4, 12), random_block(12, 2)
    wide = cast(block, torch.float64)
    assert torch.equal(gla_block(x.double(), wide), reference.forward(x.double(), wide))
    assert gla_block(x[:0], block).shape == (0, 3, 4, 12)
    leaves = [t.requires_grad_() for t in (x, block.conv, block.gate_up, block.fc1)]
    found = torch.autograd.grad(gla_block(x, block).square().sum(), leaves)
    expected = torch.autograd.grad(composed(x, block).square().sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
