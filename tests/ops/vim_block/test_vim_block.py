"""A Vim block in one call against its reference in float64, and the reference against its parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.scan.cases import FLOORS, needs_kernel, relative_error
from tests.ops.vim_block.cases import WAYS, cast, composed, multiplies_pairs, random_block, rounded, stream
from vision_ssm.errors import ShapeError
from vision_ssm.ops import VimBlock, causal_conv1d, vim_block, vim_block_applies
from vision_ssm.ops.vim_block import op, reference

pytestmark = needs_kernel


def check(x: Tensor, block: VimBlock) -> None:
    """An error of at most twice that of plain operations in float32 (on these very weights), plus the floor.

    With bfloat16 weights, or under autocast, the plain operations' products take bfloat16 where the kernel's do.
    """
    half = block.in_proj.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        assert vim_block_applies(x, block)
        found = vim_block(x, block)
        with torch.autocast("cpu", enabled=False):
            exact = reference.forward(x.double(), cast(block, torch.float64))
            operand = {"operand": rounded} if half and multiplies_pairs() else {}
            plain = composed(x, cast(block, torch.float32), **operand)
    bound = 2 * relative_error(plain, exact) + FLOORS[torch.float32]
    assert relative_error(found, exact) <= bound


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("gamma", [False, True])
def test_the_reference_is_norm_products_convolution_and_scan(way: str, norm: str, gamma: bool) -> None:
    block = cast(random_block(way, width=10, inner=12, states=3, norm=norm, gamma=gamma, scale=0.25), torch.float64)
    x = stream(2, 21, 10).double()
    torch.testing.assert_close(reference.forward(x, block), composed(x, block))


def test_where_no_call_applies_it_is_the_reference() -> None:
    """Other dtypes, an empty stream, more taps than the kernel has, and a learned factor with its gradient."""
    for options in ({}, {"taps": 9}):
        block, x = random_block("forward", width=6, inner=8, states=2, **options), stream(1, 7, 6)
        wide = cast(block, torch.float64)
        assert torch.equal(vim_block(x.double(), wide), reference.forward(x.double(), wide))
        assert vim_block(x[:, :0], block).shape == (1, 0, 6)
        torch.testing.assert_close(vim_block(x, block), reference.forward(x, block))
    block = random_block("forward", width=6, inner=8, states=2, gamma=True)
    assert block.gamma is not None
    block.gamma.requires_grad_()
    vim_block(stream(1, 7, 6), block).sum().backward()
    assert block.gamma.grad is not None and bool(block.gamma.grad.abs().sum() > 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [1, 2, 7, 31, 33, 64, 65, 197])
def test_matches_the_composition(instruction_set: str, threads: int, way: str, tokens: int) -> None:
    check(stream(1, tokens, 24), random_block(way, width=24, inner=40, states=16))


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_a_batch_is_its_images(threads: int, batch: int) -> None:
    weights = random_block("bidirectional", width=24, inner=48, states=16)
    x = stream(batch, 70, 24)
    with torch.no_grad():
        together = vim_block(x, weights)
        apart = [vim_block(image[None], weights) for image in x]
    assert torch.allclose(together, torch.cat(apart), rtol=1e-5, atol=1e-6)
    check(x, weights)


def test_many_tiles_shared_by_threads(threads: int) -> None:
    """More tokens than one group of tiles holds, so that groups follow each other."""
    check(stream(1, 1300, 33), random_block("bidirectional", width=33, inner=130, states=4))


@pytest.mark.parametrize("way", ["bidirectional", "shared"])
@pytest.mark.parametrize(
    "tokens", [pytest.param(90, marks=pytest.mark.slow), 255, 257, pytest.param(320, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_threads_on_one_image(
    monkeypatch: pytest.MonkeyPatch, instruction_set: str, way: str, tokens: int, dtype: torch.dtype
) -> None:
    """Up to 256 tokens the products rearrange weights as they go, deeper ones than a panel in parts; beyond, before."""
    monkeypatch.setattr(op, "multiplies_tiles_of_bfloat16", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(stream(1, tokens, 104), cast(random_block(way, width=104, inner=200, states=16), dtype))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("tokens", "width", "inner"), [(5, 1, 1), (70, 25, 41), (150, 65, 131), (300, 32, 64)])
def test_products_of_bfloat16(
    monkeypatch: pytest.MonkeyPatch, instruction_set: str, threads: int, tokens: int, width: int, inner: int
) -> None:
    """Inputs that end in half a pair, or in part of a vector of them."""
    monkeypatch.setattr(op, "multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_block("bidirectional", width=width, inner=inner, states=5)
    check(stream(1, tokens, width), cast(weights, torch.bfloat16))


def test_autocast_decides_about_products(monkeypatch: pytest.MonkeyPatch, instruction_set: str) -> None:
    monkeypatch.setattr(op, "multiplies_tiles_of_bfloat16", lambda: False)
    x, way = stream(1, 70, 40), "bidirectional"
    weights = random_block(way, width=40, inner=72, states=5)
    branch = weights
    with torch.no_grad():
        full = vim_block(x, branch)
        with torch.autocast("cpu", torch.bfloat16):
            check(x, weights)
            half = vim_block(x, branch)
        with torch.autocast("cpu", torch.float16):
            other = vim_block(x, branch)
    assert torch.equal(half, full) != multiplies_pairs()
    assert torch.equal(other, full)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_layer_scale_and_half_weights(
    monkeypatch: pytest.MonkeyPatch, norm: str, gamma: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(op, "multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_block("bidirectional", width=20, inner=24, states=3, norm=norm, gamma=gamma)
    check(stream(2, 50, 20) + 1, cast(weights, dtype))


def test_a_strided_stream_is_read_in_place() -> None:
    weights = random_block("forward", width=16, inner=16, states=2)
    wide = stream(2, 40, 32)
    with torch.no_grad():
        found = vim_block(wide[..., 8:24], weights._replace(scale=1.0))
        expected = vim_block(wide[..., 8:24].contiguous(), weights._replace(scale=1.0))
    assert torch.equal(found, expected)


def test_stands_back_where_it_would_be_wrong_or_unseen() -> None:
    weights = random_block("bidirectional", width=16, inner=16, states=2)
    x = stream(1, 9, 16)
    assert vim_block_applies(x, weights)
    assert not vim_block_applies(x.double(), weights)
    assert not vim_block_applies(x.to("meta"), weights)
    assert not vim_block_applies(x[:, :0], weights)
    assert not vim_block_applies(x, cast(weights, torch.float16))
    with FlopCounterMode(display=False):
        assert not vim_block_applies(x, weights)

    def image(x: Tensor) -> Tensor:
        assert not vim_block_applies(x[None], weights)
        return x

    torch.func.vmap(image)(x)


def test_weights_that_do_not_fit_are_named() -> None:
    weights = random_block("bidirectional", width=16, inner=16, states=2)
    x = stream(1, 9, 16)
    no_taps = weights.ssm._replace(conv_weight=torch.zeros(2, 16, 0))
    for wrong, message in (
        (weights._replace(out_proj=torch.zeros(8, 16)), r"out_proj must be \[16, 16\]"),
        (weights._replace(in_proj=torch.zeros(16, 16)), r"in_proj must be \[32, 16\]"),
        (weights._replace(gamma=torch.zeros(8)), r"gamma must be \[16\]"),
        (weights._replace(ssm=no_taps), "needs a convolution"),
        (weights._replace(ssm=weights.ssm._replace(D=torch.zeros(2, 15))), r"D must be \[2, 16\]"),
        (weights._replace(out_proj=None), "expects a tensor for out_proj, got None"),
    ):
        assert not vim_block_applies(x, wrong)
        with pytest.raises(ShapeError, match=message):
            vim_block(x, wrong)
    for stretched in (stream(1, 9, 24), x[0]):
        assert not vim_block_applies(stretched, weights)
        with pytest.raises(ShapeError, match=r"to fit the stream|takes a stream"):
            vim_block(stretched, weights)


def test_weights_without_memory_of_their_own_are_left_to_the_modules() -> None:
    class Wrapped(Tensor):
        pass

    weights = random_block("forward", width=16, inner=16, states=2)
    wrapped = weights._replace(in_proj=weights.in_proj.as_subclass(Wrapped))
    assert not vim_block_applies(stream(1, 9, 16), wrapped._replace(scale=1.0))


def test_another_backend_asked_for_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SSM_BACKEND", "chunked")
    weights = random_block("forward", width=16, inner=16, states=2)
    assert not vim_block_applies(stream(1, 9, 16), weights._replace(scale=1.0))


def test_agrees_with_the_public_convolution_and_scan() -> None:
    """The composition above is itself held to the library's other operators."""
    weights = random_block("bidirectional", width=16, inner=16, states=2)
    hidden = stream(1, 30, 16)
    assert weights.ssm.conv_weight is not None
    found = causal_conv1d(hidden, weights.ssm.conv_weight, weights.ssm.conv_bias, reverse=(False, True))
    taps, bias = weights.ssm.conv_weight[0], weights.ssm.conv_bias[0]  # type: ignore[index]
    expected = F.silu(F.conv1d(F.pad(hidden.transpose(1, 2), (3, 0)), taps[:, None], bias, groups=16)).transpose(1, 2)
    assert torch.allclose(found[:, 0], expected, atol=1e-6)
