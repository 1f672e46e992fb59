"""A Vim block in one call against the float64 composition of norm, products, convolution and reference scan."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scan_cases import FLOORS, needs_kernel, relative_error
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import (
    Branch,
    BranchWeights,
    NormWeights,
    SsmWeights,
    Traversal,
    branch_applies,
    causal_conv1d,
    native,
    residual_branch,
    selective_scan,
    try_residual_column,
)
from vision_ssm.ops.backends import AUTO, choose
from vision_ssm.ops.cpu import CpuBackend
from vision_ssm.ops.native import denormals_flushed

pytestmark = needs_kernel

# Per name: which way the walks go, which way the convolutions look (as in layers/mixer.py).
WAYS = {
    "bidirectional": ((False, True), (False, True)),
    "shared": ((False, True), (False,)),
    "forward": ((False,), (False,)),
    "backward": ((True,), (True,)),
}


def random_weights(
    way: str,
    *,
    width: int,
    inner: int,
    states: int,
    rank: int = 5,
    taps: int = 4,
    norm: str = "rms",
    gamma: bool = False,
    seed: int = 0,
) -> BranchWeights:
    generator = torch.Generator().manual_seed(seed)
    walks, looks = WAYS[way]
    K, P, R = len(walks), len(looks), rank

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).float()

    ssm = SsmWeights(
        A_log=draw(K, inner, states, scale=0.5),
        D=draw(P, inner),
        x_proj_weight=draw(P, R + 2 * states, inner, scale=inner**-0.5),
        dt_proj_weight=draw(P, inner, R, scale=R**-0.5),
        dt_proj_bias=draw(P, inner) - 2,
        conv_weight=draw(P, inner, taps, scale=0.5),
        conv_bias=draw(P, inner, scale=0.5),
    )
    bias = draw(width) if norm == "layer" else None
    return BranchWeights(
        NormWeights(norm, 1e-5, draw(width), bias),
        draw(2 * inner, width, scale=width**-0.5),
        ssm,
        draw(width, inner, scale=inner**-0.5),
        draw(width) if gamma else None,
    )


def tensors_of(weights: BranchWeights) -> list[Tensor]:
    parts = (weights.norm.weight, weights.norm.bias, weights.in_proj, *weights.ssm, weights.out_proj, weights.gamma)
    return [w for w in parts if w is not None]


def cast(weights: BranchWeights, dtype: torch.dtype) -> BranchWeights:
    norm = weights.norm
    return BranchWeights(
        NormWeights(norm.kind, norm.eps, norm.weight.to(dtype), None if norm.bias is None else norm.bias.to(dtype)),
        weights.in_proj.to(dtype),
        SsmWeights(*(x.to(dtype) for x in weights.ssm if x is not None)),
        weights.out_proj.to(dtype),
        None if weights.gamma is None else weights.gamma.to(dtype),
    )


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def composed(
    x: Tensor,
    weights: BranchWeights,
    scale: float,
    way: str,
    backend: str = "reference",
    operand: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """The same in plain torch operations and the reference scan, in the tensors' dtype.

    ``operand`` is applied to both sides of the products that may be of bfloat16.
    """
    walks, looks = WAYS[way]
    norm, ssm = weights.norm, weights.ssm
    if norm.kind == "rms":
        normed = F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    else:
        normed = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    hidden, z = (operand(normed) @ operand(weights.in_proj).T).chunk(2, -1)
    assert ssm.conv_weight is not None
    convolved = []
    for taps, bias, back in zip(ssm.conv_weight, ssm.conv_bias, looks, strict=True):  # type: ignore[arg-type]
        sequence = (hidden.flip(1) if back else hidden).transpose(1, 2)
        y = F.silu(F.conv1d(F.pad(sequence, (taps.shape[1] - 1, 0)), taps[:, None], bias, groups=len(bias)))
        convolved.append(y.transpose(1, 2).flip(1) if back else y.transpose(1, 2))
    u = torch.stack(convolved, 1)
    states, rank = ssm.A_log.shape[2], ssm.dt_proj_weight.shape[2]
    projected = torch.einsum("bklc,kpc->bklp", operand(u), operand(ssm.x_proj_weight))
    low, b, c = projected.split([rank, states, states], -1)
    delta = torch.einsum("bklr,kcr->bklc", low, ssm.dt_proj_weight)
    traversals = [Traversal.sequence(x.shape[1], reverse=back) for back in walks]
    A = -ssm.A_log.exp()
    y = selective_scan(u, delta, A, b, c, ssm.D, z, ssm.dt_proj_bias, traversals=traversals, backend=backend)
    added = scale * (operand(y) @ operand(weights.out_proj).T)
    return x + (added if weights.gamma is None else added * weights.gamma)


def stream(batch: int, tokens: int, width: int) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(tokens))


def multiplies_pairs() -> bool:
    """Whether the kernel in use has products of bfloat16."""
    backend = choose(AUTO, torch.device("cpu"), torch.float32)
    assert isinstance(backend, CpuBackend)
    assert native.LIBRARY is not None
    isa = native.LIBRARY.vssm_best_isa() if backend.isa == native.BEST else backend.isa
    return native.INSTRUCTION_SETS[isa] == "avx512bf16"


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
    monkeypatch.setattr("vision_ssm.ops.branch._multiplies_tiles_of_bfloat16", lambda: False)
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
    monkeypatch.setattr("vision_ssm.ops.branch._multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_weights("bidirectional", width=width, inner=inner, states=5)
    check(stream(1, tokens, width), cast(weights, torch.bfloat16), "bidirectional")


def test_autocast_decides_about_products(monkeypatch: pytest.MonkeyPatch, instruction_set: str) -> None:
    monkeypatch.setattr("vision_ssm.ops.branch._multiplies_tiles_of_bfloat16", lambda: False)
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
    monkeypatch.setattr("vision_ssm.ops.branch._multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_weights("bidirectional", width=20, inner=24, states=3, norm=norm, gamma=gamma)
    check(stream(2, 50, 20) + 1, cast(weights, dtype), "bidirectional")


def test_a_strided_stream_is_read_in_place() -> None:
    weights = random_weights("forward", width=16, inner=16, states=2)
    wide = stream(2, 40, 32)
    with torch.no_grad():
        found = residual_branch(wide[..., 8:24], Branch(weights, 1.0, *WAYS["forward"]))
        expected = residual_branch(wide[..., 8:24].contiguous(), Branch(weights, 1.0, *WAYS["forward"]))
    assert torch.equal(found, expected)


def gradients(
    x: Tensor, weights: BranchWeights, way: str, *, one_call: bool, backend: str = "reference", **options: Any
) -> list[Tensor]:
    leaves = [x, *tensors_of(weights)]
    for leaf in leaves:
        leaf.requires_grad_()
    if one_call:
        y = residual_branch(x, Branch(weights, 0.5, *WAYS[way]))
    else:
        with torch.autocast("cpu", enabled=False):
            y = composed(x, weights, 0.5, way, backend, **options)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((y * target.to(y.dtype)).sum(), leaves)
    return [y.detach(), *found]


def check_gradients(x: Tensor, weights: BranchWeights, way: str, backend: str = "reference") -> None:
    found = gradients(x.clone(), cast(weights, torch.float32), way, one_call=True)
    operand = {"operand": rounded} if torch.is_autocast_enabled("cpu") and multiplies_pairs() else {}
    plain = gradients(x.clone(), cast(weights, torch.float32), way, one_call=False, backend=backend, **operand)
    exact = gradients(x.double(), cast(weights, torch.float64), way, one_call=False, backend=backend)
    for mine, simple, true in zip(found, plain, exact, strict=True):
        assert mine.shape == true.shape
        assert relative_error(mine, true) <= 2 * relative_error(simple, true) + 10 * FLOORS[torch.float32]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(("batch", "tokens"), [(3, 1), (3, 33), (1, 70)])
def test_gradients_of_everything(threads: int, way: str, norm: str, batch: int, tokens: int) -> None:
    check_gradients(stream(batch, tokens, 24), random_weights(way, width=24, inner=40, states=16, norm=norm), way)


@pytest.mark.parametrize(
    ("batch", "tokens", "sizes"),
    [
        (1, 2, {"inner": 1, "states": 1, "rank": 1, "taps": 1}),
        (2, 31, {"inner": 16, "states": 1, "rank": 16, "taps": 2}),
        (1, 32, {"inner": 17, "states": 7, "rank": 17, "taps": 3}),
        (5, 33, {"inner": 48, "states": 3, "rank": 3, "taps": 8}),
        (3, 64, {"inner": 64, "states": 16, "rank": 12, "taps": 4}),
        (1, 65, {"inner": 130, "states": 21, "rank": 40, "taps": 5}),
    ],
)
def test_gradients_at_awkward_sizes(
    instruction_set: str, threads: int, batch: int, tokens: int, sizes: dict[str, int]
) -> None:
    """Blocks and pairs of channels that are not full, images that threads cannot share evenly, tiles that end early."""
    check_gradients(stream(batch, tokens, 20), random_weights("bidirectional", width=20, **sizes), "bidirectional")


@pytest.mark.parametrize(("batch", "tokens", "width", "inner"), [(1, 2, 1, 1), (3, 70, 25, 41), (1, 200, 40, 72)])
def test_gradients_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
    instruction_set: str,
    threads: int,
    batch: int,
    tokens: int,
    width: int,
    inner: int,
) -> None:
    """Rounding both sides of products in both directions, as plain operations under autocast would."""
    monkeypatch.setattr("vision_ssm.ops.branch._multiplies_tiles_of_bfloat16", lambda: False)
    weights = random_weights("bidirectional", width=width, inner=inner, states=5)
    with torch.autocast("cpu", torch.bfloat16):
        check_gradients(stream(batch, tokens, width), weights, "bidirectional")


@pytest.mark.parametrize("way", ["bidirectional", "shared"])
def test_gradients_over_many_tiles(threads: int, way: str) -> None:
    """More tokens than threads that share an image take between two of their meetings, and the ones after the next."""
    weights = random_weights(way, width=20, inner=260, states=3)
    check_gradients(stream(1, 1200, 20), weights, way, backend="chunked")


@pytest.mark.parametrize("looks", [(True, False), (False, False)])
def test_gradients_of_a_convolution_that_looks_ahead_of_its_walk(
    monkeypatch: pytest.MonkeyPatch, threads: int, looks: tuple[bool, bool]
) -> None:
    monkeypatch.setitem(WAYS, "ahead", ((False, True), looks))
    check_gradients(stream(2, 70, 24), random_weights("ahead", width=24, inner=40, states=2), "ahead")


@pytest.mark.parametrize(("batch", "tokens", "inner"), [(2, 70, 40), (5, 70, 40), (1, 1200, 260)])
def test_equal_calls_give_equal_gradients(threads: int, batch: int, tokens: int, inner: int) -> None:
    weights = random_weights("bidirectional", width=24, inner=inner, states=16)
    runs = [gradients(stream(batch, tokens, 24), weights, "bidirectional", one_call=True) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_frozen_weights_get_no_gradient_and_others_do() -> None:
    weights = random_weights("bidirectional", width=24, inner=40, states=16)
    weights.out_proj.requires_grad_()
    y = residual_branch(stream(1, 20, 24), Branch(weights, 0.5, *WAYS["bidirectional"]))
    y.sum().backward()
    assert weights.out_proj.grad is not None
    assert weights.in_proj.grad is None


def test_keeps_five_times_the_stream_and_the_projections_for_the_backward_pass() -> None:
    """In units of x: x itself, the scan's result 2, the states 2; and what x_proj yields, once for each direction."""
    width = 64
    weights = random_weights("bidirectional", width=width, inner=2 * width, states=16)
    x = stream(1, 512, width).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        residual_branch(x, Branch(weights, 0.5, *WAYS["bidirectional"]))
    own = {w.untyped_storage().data_ptr() for w in tensors_of(weights)}
    projected = x.numel() // width * 2 * weights.ssm.x_proj_weight.shape[1] * x.itemsize
    assert sum(size for at, size in kept.items() if at not in own) == 5 * x.untyped_storage().size() + projected


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


def test_forward_mode_differentiation_is_not_lost() -> None:
    weights, x = random_weights("forward", width=16, inner=16, states=2), stream(1, 9, 16)
    with torch.autograd.forward_ad.dual_level():
        assert not branch_applies(x, Branch(weights, 1.0, *WAYS["forward"]))


def test_a_backward_pass_under_autocast_is_computed_in_full() -> None:
    weights = random_weights("bidirectional", width=24, inner=40, states=16)
    leaves = [w.requires_grad_() for w in tensors_of(weights)]
    y = residual_branch(stream(1, 40, 24), Branch(weights, 0.5, *WAYS["bidirectional"]))
    plain = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        under = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_gradients_do_not_follow_the_default_dtype(default: torch.dtype) -> None:
    weights, x = random_weights("bidirectional", width=24, inner=40, states=16), stream(2, 40, 24)
    expected = gradients(x.clone(), weights, "bidirectional", one_call=True)
    torch.set_default_dtype(default)
    try:
        found = gradients(x.clone(), weights, "bidirectional", one_call=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_denormals_are_flushed_in_every_thread_and_only_for_the_time() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the flag is x86's")
    small = torch.full((1 << 20,), 1e-30)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with denormals_flushed():
            flushed = small * 1e-12
        kept = small * 1e-12
    finally:
        torch.set_num_threads(before)
    assert not flushed.count_nonzero()
    assert kept.count_nonzero() == len(kept)


def test_a_gradient_of_a_gradient_is_refused_rather_than_lost() -> None:
    weights, x = random_weights("forward", width=16, inner=16, states=2), stream(1, 9, 16).requires_grad_()
    y = residual_branch(x, Branch(weights, 1.0, *WAYS["forward"]))
    with pytest.raises(BackendError, match="differentiates a Vim block once"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_the_result_may_be_changed_in_place() -> None:
    weights, x = random_weights("forward", width=16, inner=16, states=2), stream(1, 9, 16).requires_grad_()
    y = residual_branch(x, Branch(weights, 1.0, *WAYS["forward"]))
    y += 1
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 40), (1, 300), (3, 33)])
def test_a_column_is_its_blocks(
    monkeypatch: pytest.MonkeyPatch, instruction_set: str, threads: int, way: str, batch: int, tokens: int
) -> None:
    branches = [
        Branch(random_weights(way, width=24, inner=48, states=16, seed=seed), scale, *WAYS[way])
        for seed, scale in enumerate((0.5, 1.0, 0.25))
    ]
    x = stream(batch, tokens, 24)
    given = x.clone()
    with torch.no_grad():
        expected = x
        for branch in branches:
            expected = residual_branch(expected, branch)
        for _ in range(2):  # the second time, the call is known
            found = try_residual_column(x, branches)
            assert found is not None
            assert torch.equal(found, expected)
    assert torch.equal(x, given)


def test_a_column_sees_weights_changed_in_any_way() -> None:
    weights = [random_weights("forward", width=16, inner=16, states=2, seed=seed) for seed in range(2)]
    branches = [Branch(w, 1.0, *WAYS["forward"]) for w in weights]
    x = stream(1, 20, 16)
    with torch.no_grad():
        before = try_residual_column(x, branches)
        weights[1].out_proj.numpy()[:] *= 2  # no version counter knows
        weights[0].in_proj.data = weights[0].in_proj.clone() * 2
        found = try_residual_column(x, branches)
        expected = residual_branch(residual_branch(x, branches[0]), branches[1])
    assert before is not None and found is not None
    assert torch.equal(found, expected) and not torch.allclose(found, before)


def test_a_column_stands_back_where_blocks_differ_or_gradients_are_wanted() -> None:
    def block(way: str = "forward", inner: int = 16, norm: str = "rms", gamma: bool = False) -> Branch:
        return Branch(random_weights(way, width=16, inner=inner, states=2, norm=norm, gamma=gamma), 1.0, *WAYS[way])

    x, first = stream(1, 20, 16), block()
    assert try_residual_column(x, [first, block()]) is None  # gradients are enabled
    with torch.no_grad():
        assert try_residual_column(x, [first, block()]) is not None
        assert try_residual_column(x, []) is None
        for other in (block("backward"), block(inner=32), block(norm="layer"), block(gamma=True)):
            assert try_residual_column(x, [first, other]) is None
            assert try_residual_column(x, [other, first]) is None
        half = first._replace(weights=cast(first.weights, torch.bfloat16))
        assert try_residual_column(x, [first, half]) is None
        assert try_residual_column(x.double(), [first, first]) is None


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
