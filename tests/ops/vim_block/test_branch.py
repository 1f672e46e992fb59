"""A Vim block in one call against the float64 composition of norm, products, convolution and reference scan."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.scan.cases import FLOORS, needs_kernel, relative_error
from tests.ops.vim_block.cases import WAYS, cast, composed, multiplies_pairs, random_weights, rounded, stream
from vision_ssm.errors import ShapeError
from vision_ssm.ops import (
    Branch,
    BranchWeights,
    branch_applies,
    causal_conv1d,
    residual_branch,
)

pytestmark = needs_kernel


def check(x: Tensor, weights: BranchWeights, way: str, scale: float = 0.5) -> None:
    """An error of at most twice that of plain operations in float32 (on these very weights), plus the floor.

    With bfloat16 weights, or under autocast, the plain operations' products take bfloat16 where the kernel's do.
    """
    half = weights.in_proj.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        assert branch_applies(x, Branch(weights, 1.0, *WAYS[way]))
        found = residual_branch(x, Branch(weights, scale, *WAYS[way]))
        with torch.autocast("cpu", enabled=False):
            exact = composed(x.double(), cast(weights, torch.float64), scale, way)
            operand = {"operand": rounded} if half and multiplies_pairs() else {}
            plain = composed(x, cast(weights, torch.float32), scale, way, **operand)
    bound = 2 * relative_error(plain, exact) + FLOORS[torch.float32]
    assert relative_error(found, exact) <= bound


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [1, 2, 7, 31, 33, 64, 65, 197])
def test_matches_the_composition(instruction_set: str, threads: int, way: str, tokens: int) -> None:
    check(stream(1, tokens, 24), random_weights(way, width=24, inner=40, states=16), way)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_a_batch_is_its_images(threads: int, batch: int) -> None:
    weights = random_weights("bidirectional", width=24, inner=48, states=16)
    x = stream(batch, 70, 24)
    with torch.no_grad():
        together = residual_branch(x, Branch(weights, 0.5, *WAYS["bidirectional"]))
        apart = [residual_branch(image[None], Branch(weights, 0.5, *WAYS["bidirectional"])) for image in x]
    assert torch.allclose(together, torch.cat(apart), rtol=1e-5, atol=1e-6)
    check(x, weights, "bidirectional")


def test_many_tiles_shared_by_threads(threads: int) -> None:
    """More tokens than one group of tiles holds, so that groups follow each other."""
    check(stream(1, 1300, 33), random_weights("bidirectional", width=33, inner=130, states=4), "bidirectional")


@pytest.mark.parametrize("way", ["bidirectional", "shared"])
@pytest.mark.parametrize("tokens", [90, 255, 257, 320])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_threads_on_one_image(
    monkeypatch: pytest.MonkeyPatch, instruction_set: str, way: str, tokens: int, dtype: torch.dtype
) -> None:
    """Up to 256 tokens the products rearrange weights as they go, deeper ones than a panel in parts; beyond, before."""
    monkeypatch.setattr("vision_ssm.ops.vim_block.op.multiplies_tiles_of_bfloat16", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(stream(1, tokens, 104), cast(random_weights(way, width=104, inner=200, states=16), dtype), way)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("tokens", "width", "inner"), [(5, 1, 1), (70, 25, 41), (150, 65, 131), (300, 32, 64)])
def test_products_of_bfloat16(
    monkeypatch: pytest.MonkeyPatch, instruction_set: str, threads: int, tokens: int, width: int, inner: int
) -> None:
    """Inputs that end in half a pair, or in part of a vector of them."""
    monkeypatch.setattr("vision_ssm.ops.vim_block.op.multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_weights("bidirectional", width=width, inner=inner, states=5)
    check(stream(1, tokens, width), cast(weights, torch.bfloat16), "bidirectional")


def test_autocast_decides_about_products(monkeypatch: pytest.MonkeyPatch, instruction_set: str) -> None:
    monkeypatch.setattr("vision_ssm.ops.vim_block.op.multiplies_tiles_of_bfloat16", lambda: False)
    x, way = stream(1, 70, 40), "bidirectional"
    weights = random_weights(way, width=40, inner=72, states=5)
    branch = Branch(weights, 0.5, *WAYS[way])
    with torch.no_grad():
        full = residual_branch(x, branch)
        with torch.autocast("cpu", torch.bfloat16):
            check(x, weights, way)
            half = residual_branch(x, branch)
        with torch.autocast("cpu", torch.float16):
            other = residual_branch(x, branch)
    assert torch.equal(half, full) != multiplies_pairs()
    assert torch.equal(other, full)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_layer_scale_and_half_weights(
    monkeypatch: pytest.MonkeyPatch, norm: str, gamma: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("vision_ssm.ops.vim_block.op.multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_weights("bidirectional", width=20, inner=24, states=3, norm=norm, gamma=gamma)
    check(stream(2, 50, 20) + 1, cast(weights, dtype), "bidirectional")


def test_a_strided_stream_is_read_in_place() -> None:
    weights = random_weights("forward", width=16, inner=16, states=2)
    wide = stream(2, 40, 32)
    with torch.no_grad():
        found = residual_branch(wide[..., 8:24], Branch(weights, 1.0, *WAYS["forward"]))
        expected = residual_branch(wide[..., 8:24].contiguous(), Branch(weights, 1.0, *WAYS["forward"]))
    assert torch.equal(found, expected)


def test_stands_back_where_it_would_be_wrong_or_unseen() -> None:
    way = WAYS["bidirectional"]
    weights = random_weights("bidirectional", width=16, inner=16, states=2)
    x = stream(1, 9, 16)
    assert branch_applies(x, Branch(weights, 1.0, *way))
    assert not branch_applies(x.double(), Branch(weights, 1.0, *way))
    assert not branch_applies(x.to("meta"), Branch(weights, 1.0, *way))
    assert not branch_applies(x[:, :0], Branch(weights, 1.0, *way))
    assert not branch_applies(x, Branch(cast(weights, torch.float16), 1.0, *way))
    with FlopCounterMode(display=False):
        assert not branch_applies(x, Branch(weights, 1.0, *way))

    def image(x: Tensor) -> Tensor:
        assert not branch_applies(x[None], Branch(weights, 1.0, *way))
        return x

    torch.func.vmap(image)(x)


def test_weights_that_do_not_fit_are_named() -> None:
    way = WAYS["bidirectional"]
    weights = random_weights("bidirectional", width=16, inner=16, states=2)
    x = stream(1, 9, 16)
    many_taps = weights.ssm._replace(conv_weight=torch.zeros(2, 16, 9))
    for wrong, message in (
        (weights._replace(out_proj=torch.zeros(8, 16)), r"out_proj must be \[16, 16\]"),
        (weights._replace(in_proj=torch.zeros(16, 16)), r"in_proj must be \[32, 16\]"),
        (weights._replace(gamma=torch.zeros(8)), r"gamma must be \[16\]"),
        (weights._replace(ssm=many_taps), "1 to 8 taps"),
    ):
        assert not branch_applies(x, Branch(wrong, 1.0, *way))
        with pytest.raises(ShapeError, match=message):
            residual_branch(x, Branch(wrong, 1.0, *way))
    for stretched in (stream(1, 9, 24), x[0]):
        assert not branch_applies(stretched, Branch(weights, 1.0, *way))
        with pytest.raises(ShapeError, match=r"to fit the stream|takes a stream"):
            residual_branch(stretched, Branch(weights, 1.0, *way))


def test_weights_without_memory_of_their_own_are_left_to_the_modules() -> None:
    class Wrapped(Tensor):
        pass

    weights = random_weights("forward", width=16, inner=16, states=2)
    wrapped = weights._replace(in_proj=weights.in_proj.as_subclass(Wrapped))
    assert not branch_applies(stream(1, 9, 16), Branch(wrapped, 1.0, *WAYS["forward"]))


def test_another_backend_asked_for_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SSM_BACKEND", "chunked")
    weights = random_weights("forward", width=16, inner=16, states=2)
    assert not branch_applies(stream(1, 9, 16), Branch(weights, 1.0, *WAYS["forward"]))


def test_agrees_with_the_public_convolution_and_scan() -> None:
    """The composition above is itself held to the library's other operators."""
    weights = random_weights("bidirectional", width=16, inner=16, states=2)
    hidden = stream(1, 30, 16)
    assert weights.ssm.conv_weight is not None
    found = causal_conv1d(hidden, weights.ssm.conv_weight, weights.ssm.conv_bias, reverse=(False, True))
    taps, bias = weights.ssm.conv_weight[0], weights.ssm.conv_bias[0]  # type: ignore[index]
    expected = F.silu(F.conv1d(F.pad(hidden.transpose(1, 2), (3, 0)), taps[:, None], bias, groups=16)).transpose(1, 2)
    assert torch.allclose(found[:, 0], expected, atol=1e-6)
