"""An MLP branch in one call against the float64 composition of norm, linear layers and GELU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.scan.cases import FLOORS, needs_kernel, relative_error
from tests.ops.vim_block.cases import multiplies_pairs, rounded
from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.ops import MlpWeights, NormWeights, mlp_branch, mlp_branch_applies
from vision_ssm.ops.mlp import cpu, reference
from vision_ssm.ops.native import instruction_set

pytestmark = needs_kernel
needs_vectors = pytest.mark.skipif(instruction_set() == "portable", reason="portable code is left alone")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def random_weights(width: int, hidden: int, norm: str = "layer", *, bias: bool = True) -> MlpWeights:
    of_norm = NormWeights(norm, 1e-5, 1 + 0.3 * draw(width, seed=1), draw(width, seed=2) if bias else None)
    fc1, fc2 = draw(hidden, width, seed=3) * width**-0.5, draw(width, hidden, seed=4) * max(hidden, 1) ** -0.5
    return MlpWeights(of_norm, fc1, draw(hidden, seed=5), fc2, draw(width, seed=6))


def cast(weights: MlpWeights, dtype: torch.dtype) -> MlpWeights:
    norm = weights.norm
    bias = None if norm.bias is None else norm.bias.to(dtype)
    return MlpWeights(norm._replace(weight=norm.weight.to(dtype), bias=bias), *(w.to(dtype) for w in weights[1:]))


def composed(
    x: Tensor, added: Tensor, weights: MlpWeights, operand: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """The same in plain torch operations; ``operand`` is applied to both sides of the products."""
    norm, fc1, fc1_bias, fc2, fc2_bias = weights
    stream = x + added
    if norm.kind == "rms":
        normed = F.rms_norm(stream, norm.weight.shape, norm.weight, norm.eps)
    else:
        normed = F.layer_norm(stream, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    hidden = F.gelu(operand(normed) @ operand(fc1).T + fc1_bias)
    return stream + operand(hidden) @ operand(fc2).T + fc2_bias


def check(x: Tensor, added: Tensor, weights: MlpWeights, floor: float = FLOORS[torch.float32]) -> None:
    """An error of at most twice that of plain operations in float32 with products as the kernel's, plus the floor."""
    half = x.dtype == torch.bfloat16
    with torch.no_grad():
        found = cpu.forward(x, added, weights)
        exact = reference.forward(x.double(), added.double(), cast(weights, torch.float64))
        operand = {"operand": rounded} if half and multiplies_pairs() else {}
        plain = composed(x.float(), added.float(), cast(weights, torch.float32), **operand).to(x.dtype)
    assert found.dtype == x.dtype
    assert found.shape == x.shape
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact) + floor


@pytest.fixture(autouse=True)
def _no_tiles_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "width", "hidden"),
    [(1, 1, 1), (3, 7, 5), (49, 96, 384), (70, 25, 131), (256, 50, 100), (257, 50, 100), (700, 24, 800)],
)
def test_matches_the_composition(
    instruction_set: str, threads: int, dtype: torch.dtype, tokens: int, width: int, hidden: int
) -> None:
    """Outputs of each product shared by threads up to 256 tokens, tokens beyond; panels and pairs that are not full."""
    x, added = draw(tokens, width, seed=7).to(dtype), draw(tokens, width, seed=8).to(dtype)
    check(x, added, cast(random_weights(width, hidden), dtype))


@pytest.mark.parametrize("tokens", [30, 600])
def test_sums_of_many_products_keep_their_digits(instruction_set: str, tokens: int) -> None:
    """One sum after the other of all products would be off by three times as much as plain operations are."""
    check(draw(tokens, 500, seed=7), draw(tokens, 500, seed=8), random_weights(500, 3000), floor=0.0)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_norms(norm: str, bias: bool) -> None:
    weights = random_weights(20, 40, norm, bias=bias and norm == "layer")
    check(draw(2, 5, 6, 20, seed=7) + 3, draw(2, 5, 6, 20, seed=8), weights)


def test_strided_tensors() -> None:
    wide = draw(2, 5, 6, 40, seed=7)
    across = draw(20, 6, 5, 2, seed=8).permute(3, 2, 1, 0)
    check(wide[..., 7:27], across, random_weights(20, 40))


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 5.0, 30.0, 1e4])
def test_gelu_at_any_size(instruction_set: str, scale: float) -> None:
    """Both linear layers copy, fc1 with a factor, so that what is added is GELU of the normalised stream."""
    width = 64
    stream = torch.cat([torch.linspace(-1, 1, width - 1), torch.zeros(1)])[None]
    norm = NormWeights("rms", 1e-5, torch.ones(width))
    normed = F.rms_norm(stream, (width,), eps=1e-5)
    weights = MlpWeights(norm, scale * torch.eye(width), torch.zeros(width), torch.eye(width), torch.zeros(width))
    with torch.no_grad():
        found = mlp_branch(stream, torch.zeros_like(stream), weights) - stream
    exact = F.gelu(scale * normed.double())
    assert (found - exact).abs().max() <= 2e-7 * max(1.0, float(exact.abs().max()))


def test_what_is_not_finite_stays_in_its_token(instruction_set: str) -> None:
    weights, added = random_weights(20, 40), torch.zeros(9, 20)
    x = draw(9, 20, seed=7)
    with torch.no_grad():
        expected = mlp_branch(x, added, weights)
        x[3, 5], x[6, 2] = torch.nan, torch.inf
        found = mlp_branch(x, added, weights)
    assert not found[3].isfinite().any()
    assert not found[6].isfinite().any()
    others = [0, 1, 2, 4, 5, 7, 8]
    assert torch.equal(found[others], expected[others])


def test_huge_hidden_values() -> None:
    """GELU of them is themselves or zero, without overflow on the way."""
    norm = NormWeights("rms", 1e-5, torch.ones(16))
    stream = torch.ones(1, 16)
    weights = MlpWeights(norm, torch.zeros(2, 16), torch.tensor([1e30, -1e30]), torch.eye(16, 2), torch.zeros(16))
    with torch.no_grad():
        found = mlp_branch(stream, torch.zeros_like(stream), weights)
    assert found[0, 0] == 1e30
    assert torch.equal(found[0, 1:], torch.ones(15))


@pytest.mark.parametrize("tokens", [40, 700])
def test_equal_calls_give_equal_results(threads: int, tokens: int) -> None:
    x, added, weights = draw(tokens, 24, seed=7), draw(tokens, 24, seed=8), random_weights(24, 96)
    with torch.no_grad():
        runs = [mlp_branch(x, added, weights) for _ in range(3)]
    assert all(torch.equal(runs[0], run) for run in runs[1:])


@needs_vectors
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_stands_back_where_it_would_be_wrong_or_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    x, added, weights = draw(9, 16, seed=7), draw(9, 16, seed=8), random_weights(16, 32)
    assert mlp_branch_applies(x, added, weights)
    assert not mlp_branch_applies(x.double(), added, weights)
    assert not mlp_branch_applies(x, added.bfloat16(), weights)
    assert not mlp_branch_applies(x, added, cast(weights, torch.bfloat16))
    assert not mlp_branch_applies(x.to("meta"), added.to("meta"), weights)
    assert not mlp_branch_applies(x[:0], added[:0], weights)
    assert not mlp_branch_applies(x, added[:5], weights)
    assert not mlp_branch_applies(torch._neg_view(x), added, weights)
    assert not mlp_branch_applies(x, added, weights._replace(fc1_weight=weights.fc1_weight.to_sparse_csr()))
    assert not mlp_branch_applies(x, added, random_weights(16, 0))
    assert not mlp_branch_applies(x, added, weights._replace(norm=weights.norm._replace(kind="batch")))
    with torch.autocast("cpu", torch.bfloat16):
        assert not mlp_branch_applies(x, added, weights)
    with FlopCounterMode(display=False):
        assert not mlp_branch_applies(x, added, weights)
    weights.fc2_bias.requires_grad_()
    assert not mlp_branch_applies(x, added, weights)
    with torch.no_grad():
        assert mlp_branch_applies(x, added, weights)
    half = x.bfloat16(), added.bfloat16(), cast(random_weights(16, 32), torch.bfloat16)
    assert mlp_branch_applies(*half)
    monkeypatch.setattr("vision_ssm.ops.dispatch.multiplies_tiles_of_bfloat16", lambda: True)
    assert not mlp_branch_applies(*half)


def test_shapes_that_do_not_fit_are_told() -> None:
    x, weights = draw(9, 16), random_weights(16, 32)
    with pytest.raises(ShapeError, match=r"added of the same shape, got \[9, 16\] and \[9, 1\]"):
        mlp_branch(x, draw(9, 1), weights)
    with pytest.raises(ShapeError, match=r"fc2_weight must be \[16, 32\] to fit .* got \[32, 16\]"):
        mlp_branch(x, x, weights._replace(fc2_weight=draw(32, 16)))
    with pytest.raises(ShapeError, match=r"norm weight must be \[15\]"):
        mlp_branch(x[:, :15], x[:, :15], weights)


def test_portable_code_is_left_alone(instruction_set: str) -> None:
    """It is slower than the modules."""
    x, weights = draw(9, 16), random_weights(16, 32)
    assert mlp_branch_applies(x, x, weights) == (instruction_set != "portable")


def test_nothing_and_next_to_nothing() -> None:
    weights = random_weights(16, 32)
    assert mlp_branch(draw(0, 16), draw(0, 16), weights).shape == (0, 16)
    with pytest.raises(ShapeError, match="a channel and a hidden value at least, got 16 and 0"):
        mlp_branch(draw(9, 16), draw(9, 16), random_weights(16, 0))
    with pytest.raises(ConfigError, match="must be one of rms, layer, got 'batch'"):
        mlp_branch(draw(9, 16), draw(9, 16), weights._replace(norm=weights.norm._replace(kind="batch")))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_the_reference_is_norm_products_and_gelu(norm: str) -> None:
    x, added = draw(2, 9, 16, seed=7).double(), draw(2, 9, 16, seed=8).double()
    weights = cast(random_weights(16, 32, norm, bias=norm == "layer"), torch.float64)
    torch.testing.assert_close(reference.forward(x, added, weights), composed(x, added, weights))


def test_where_no_call_applies_it_is_the_reference() -> None:
    """Other dtypes, layers without biases, and gradients."""
    x, added, weights = draw(9, 16, seed=7), draw(9, 16, seed=8), random_weights(16, 32)
    wide = cast(weights, torch.float64)
    torch.testing.assert_close(mlp_branch(x.double(), added.double(), wide), composed(x.double(), added.double(), wide))
    plain = weights._replace(fc1_bias=None)
    torch.testing.assert_close(
        mlp_branch(x, added, plain), mlp_branch(x, added, weights._replace(fc1_bias=torch.zeros(32)))
    )
    leaves = [t.requires_grad_() for t in (x, added, weights.fc1_weight, weights.fc2_bias)]
    found = torch.autograd.grad(mlp_branch(x, added, weights).square().sum(), leaves)
    expected = torch.autograd.grad(composed(x, added, weights).square().sum(), leaves)
    torch.testing.assert_close(found, expected)
