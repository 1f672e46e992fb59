"""Every operator under every transform of torch: as right as a loop in float64, or refused in our own words.

What is expected comes from float64 alone: finite differences, and gradients, of the operators' references in a loop.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

from tests.ops.gla_block.cases import random_block as random_gla_block
from tests.ops.vim_block.cases import random_block
from vision_ssm import ops
from vision_ssm.errors import BackendError
from vision_ssm.ops import MlpWeights, NormWeights, Traversal, VimBlock, VimColumn
from vision_ssm.ops.dispatch import ENVIRONMENT_VARIABLE
from vision_ssm.ops.traversal import flatten

B, L, C, N, K, R = 2, 5, 3, 2, 2, 2  # images, tokens, channels, states, directions, step rank
WALKS = (Traversal.sequence(L), Traversal.sequence(L, reverse=True))
KERNEL = torch.ops.vision_ssm
Pairs = Iterator[tuple[Any, Any]]


class Case(NamedTuple):
    """A call of tensors of these shapes; ``exact`` is the same where the call itself takes no float64."""

    operator: str
    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    exact: Callable[..., Tensor] | None = None


def both(pair: Sequence[Tensor]) -> Tensor:
    return torch.stack([pair[0].to(pair[1].dtype), pair[1]])


def scan_rest(x: Tensor) -> tuple[Any, ...]:
    return flatten(WALKS), True, True, torch.is_grad_enabled() and x.requires_grad, "auto"


FORM = random_block("bidirectional", width=4, inner=C, states=N, rank=R, scale=0.5)


def block_of(*tensors: Tensor) -> VimBlock:
    return FORM.holding([*tensors[:8], None, *tensors[8:], None])


GLA_FORM = random_gla_block(4, heads=2, rank=R, hidden=6)


def gla_block_of(*tensors: Tensor) -> ops.GlaBlock:
    return GLA_FORM.holding([tensors[0], None, tensors[1], None, *tensors[2:]])


def mlp_of(*tensors: Tensor) -> MlpWeights:
    return MlpWeights(NormWeights("layer", 1e-5, *tensors[:2]), *tensors[2:])


SCAN = ((B, 1, L, C), (B, K, L, C), (K, C, N), (B, K, L, N), (B, K, L, N), (K, C), (B, L, C), (K, C))
CONV = ((B, L, C), (K, C, 4), (K, C))
NORM = ((B, L, C), (B, L, C), (C,), (C,))
SSM = ((K, C, N), (K, C), (K, R + 2 * N, C), (K, C, R), (K, C), (K, C, 4), (K, C))
BLOCK = ((B, L, 4), *SSM, (4,), (2 * C, 4), (4, C))
MLP = ((B, L, C), (B, L, C), (C,), (C,), (6, C), (6,), (C, 6), (C,))
GLA = ((B, L, 2 * N), (B, L, 2 * N), (B, L, 2 * C), (B, K, L, 2 * N))  # two heads
GLA_BLOCK = ((B, 3, 2, 4), *(tuple(w.shape) for w in GLA_FORM.tensors() if w is not None))
PATCHES = ((B, C, 5, 4), (6, C, 2, 2), (6,), (1, 7, 6), (1, 1, 6))


def scan(*x: Tensor) -> Tensor:
    return ops.selective_scan(*x, traversals=WALKS)


def conv(*x: Tensor) -> Tensor:
    return ops.causal_conv1d(*x, reverse=(False, True))


def ssm(*x: Tensor) -> Tensor:
    return ops.selective_ssm(*x, traversals=WALKS, reverse=(False, True))


def gla(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    return ops.gla(q, k, v, -gates.square(), heads=2, traversals=WALKS)


def add_norm(*x: Tensor) -> Tensor:
    return both(ops.add_norm(*x))


CASES = {
    "scan": Case("selective_scan", scan, SCAN),
    "conv": Case("causal_conv1d", conv, CONV),
    "gla": Case("gla", gla, GLA),
    "add_norm": Case("add_norm", add_norm, NORM),
    "ssm": Case("selective_ssm", ssm, ((B, L, C), (B, L, C), *SSM)),
    "vim_block": Case("vim_block", lambda x, *w: ops.vim_block(x, block_of(*w)), BLOCK),
    "gla_block": Case("gla_block", lambda x, *w: ops.gla_block(x, gla_block_of(*w)), GLA_BLOCK),
    "mlp": Case("mlp_branch", lambda x, added, *w: ops.mlp_branch(x, added, mlp_of(*w)), MLP),
    "patch_embed": Case("embed_patches", lambda *x: ops.embed_patches(*x, (3,), stride=2), PATCHES),
    "scan, the kernel": Case(
        "vision_ssm::selective_scan", lambda *x: KERNEL.selective_scan(*x, *scan_rest(x[0]))[0], SCAN, scan
    ),
    "conv, the kernel": Case(
        "vision_ssm::causal_conv1d", lambda *x: KERNEL.causal_conv1d(*x, [False, True], True), CONV, conv
    ),
    "gla, the kernel": Case(
        "vision_ssm::gla",
        lambda q, k, v, g: KERNEL.gla(q, k, v, -g.square(), 2, N**-0.5, flatten(WALKS), True, "auto"),
        GLA,
        gla,
    ),
    "add_norm, the kernel": Case(
        "vision_ssm::add_norm", lambda *x: both(KERNEL.add_norm(*x, 1e-5, "rms")), NORM, add_norm
    ),
    "ssm, the kernel": Case(
        "vision_ssm::selective_ssm",
        lambda *x: KERNEL.selective_ssm(*x, flatten(WALKS), [False, True]),
        ((B, L, C), (B, L, C), *SSM),
        ssm,
    ),
}

# A gradient of autograd's gradient; and what of the kernels called by name is for a GPU only, or for inference.
REFUSED = {
    **{(name, "twice"): "create_graph=True" for name in ("scan", "conv", "gla", "gla_block", "ssm", "vim_block")},
    **{(f"{name}, the kernel", "twice"): "create_graph=True" for name in ("scan", "conv", "gla")},
    ("scan, the kernel", "autograd of vmap"): "ran with save_states=False",
    **{("ssm, the kernel", name): "is for inference" for name in ("twice", "many gradients", "autograd of vmap")},
    **{
        ("add_norm, the kernel", name): "runs on the 'triton' backend only"
        for name in ("twice", "many gradients", "vmap", "vmap of vmap", "vmap of none", "autograd of vmap")
    },
}


def test_every_operator_has_a_case() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vision_ssm::")}
    forward = {name for name in registered if not name.endswith("_backward")}
    functions = {name: getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    public = {name for name, f in functions.items() if "Tensor" in str(inspect.signature(f).return_annotation)}
    assert {case.operator for case in CASES.values()} == forward | public


class Given:
    """A case's call in float32, and in float64 by the reference; its tensors, and directions in their space."""

    def __init__(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = torch.Generator().manual_seed(0)
        self.wide = [torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5 for shape in case.shapes]
        self.along = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in case.shapes]
        self.x, self.t = ([v.float() for v in vs] for vs in (self.wide, self.along))
        self.call, self._exact, self._patch = case.call, case.exact or case.call, monkeypatch

    def exact(self, *tensors: Tensor) -> Tensor:
        with self._reference():
            return self._exact(*tensors)

    def slope(self, along: Sequence[Tensor | None]) -> Tensor:
        """The derivative of the call along a direction."""
        with torch.no_grad():
            ahead, behind = (self.exact(*self.moved(along, by)) for by in (1e-5, -1e-5))
        return (ahead - behind) / 2e-5

    def moved(self, along: Sequence[Tensor | None], by: float) -> list[Tensor]:
        return [x if t is None else x + by * t for x, t in zip(self.wide, along, strict=True)]

    def gradients(self, tensors: Sequence[Tensor], of_result: Tensor | None = None) -> list[Tensor]:
        """Those of the sum of what is twice differentiable, or of the result in a direction."""
        leaves = [x.detach().double().requires_grad_() for x in tensors]
        with self._reference():
            y = self._exact(*leaves)
            return list(torch.autograd.grad(total(y) if of_result is None else (y * of_result).sum(), leaves))

    @contextmanager
    def _reference(self) -> Iterator[None]:
        with self._patch.context() as patch:
            patch.setenv(ENVIRONMENT_VARIABLE, "reference")
            yield


def total(y: Tensor) -> Tensor:
    return y.sin().sum()


def forward_mode(given: Given) -> Pairs:
    yield jvp(given.call, tuple(given.x), tuple(given.t))[1], given.slope(given.along)


def forward_mode_of_each(given: Given) -> Pairs:
    """Parameters are dual where the input is not, and the other way round."""
    for n, (x, t) in enumerate(zip(given.x, given.t, strict=True)):
        only = [along if m == n else None for m, along in enumerate(given.along)]
        with torch.no_grad(), forward_ad.dual_level():
            y = given.call(*given.x[:n], forward_ad.make_dual(x, t), *given.x[n + 1 :])
            yield forward_ad.unpack_dual(y).tangent, given.slope(only)


def forward_mode_of_parameters(given: Given) -> Pairs:
    """The tensors want gradients as well: of the result, and of its derivative."""
    leaves = [x.clone().requires_grad_() for x in given.x]
    with forward_ad.dual_level():
        y, slope = forward_ad.unpack_dual(given.call(*map(forward_ad.make_dual, leaves, given.t)))
    yield slope, given.slope(given.along)
    yield (
        torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True),
        given.gradients(given.x, torch.ones(())),
    )
    ahead, behind = (given.gradients(given.moved(given.along, by), torch.ones(())) for by in (1e-5, -1e-5))
    found = torch.autograd.grad(slope.sum(), leaves, allow_unused=True, materialize_grads=True)
    yield found, [(a - b) / 2e-5 for a, b in zip(ahead, behind, strict=True)]


def jacobian_forward(given: Given) -> Pairs:
    found = jacfwd(lambda s: given.call(*(x + s * t for x, t in zip(given.x, given.t, strict=True))))
    yield found(torch.zeros(())), given.slope(given.along)


def reverse_mode(given: Given) -> Pairs:
    y, go_back = vjp(given.call, *given.x)
    exact = given.exact(*given.wide)
    yield y, exact
    yield go_back(torch.ones_like(y)), given.gradients(given.x, torch.ones_like(exact))


def jacobian_reverse(given: Given) -> Pairs:
    wanted = torch.autograd.functional.jacobian(lambda x: given.exact(x, *given.wide[1:]), given.wide[0])
    yield jacrev(given.call)(*given.x), wanted


def vectorised(given: Given) -> Pairs:
    """Every tensor batched along its first or its last axis, then each by itself; three of them, and one."""
    for count, dim in ((3, 0), (3, -1), (1, 0)):
        wide, narrow = batches(given, count)
        found = vmap(given.call, in_dims=dim)(*(x.movedim(0, dim) for x in narrow))
        yield found, torch.stack([given.exact(*one) for one in zip(*wide, strict=True)])
    wide, narrow = batches(given, 2)
    for n, several in enumerate(wide):
        others = given.wide[:n], given.wide[n + 1 :]
        found = vmap(lambda v, n=n: given.call(*given.x[:n], v, *given.x[n + 1 :]))(narrow[n])
        yield found, torch.stack([given.exact(*others[0], one, *others[1]) for one in several])


def vectorised_twice(given: Given) -> Pairs:
    wide, narrow = batches(given, 4)
    found = vmap(vmap(given.call))(*(x.unflatten(0, (2, 2)) for x in narrow))
    yield found.flatten(0, 1), torch.stack([given.exact(*one) for one in zip(*wide, strict=True)])


def vectorised_none(given: Given) -> Pairs:
    y = given.exact(*given.wide)
    yield vmap(lambda x: given.call(x, *given.x[1:]))(given.x[0][None][:0]), y[None][:0]


def gradients_of_each(given: Given) -> Pairs:
    wide, narrow = batches(given, 2)
    found = vmap(grad(lambda *x: total(given.call(*x)), argnums=tuple(range(len(narrow)))))(*narrow)
    yield found, [torch.stack(same) for same in zip(*map(given.gradients, zip(*wide, strict=True)), strict=True)]


def autograd_of_vectorised(given: Given) -> Pairs:
    wide, narrow = batches(given, 2)
    leaves = [x.requires_grad_() for x in narrow]
    found = torch.autograd.grad(total(vmap(given.call)(*leaves)), leaves)
    yield found, [torch.stack(same) for same in zip(*map(given.gradients, zip(*wide, strict=True)), strict=True)]


def many_gradients(given: Given) -> Pairs:
    """Autograd's own way to a Jacobian: one graph, many gradients at a time."""
    leaves = [x.clone().requires_grad_() for x in given.x]
    y = given.call(*leaves)
    several = torch.randn(2, *y.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, leaves, several, is_grads_batched=True)
    each = [given.gradients(given.x, one.double()) for one in several]
    yield found, [torch.stack(same) for same in zip(*each, strict=True)]


def second_derivatives(given: Given) -> Pairs:
    every = tuple(range(len(given.x)))
    gradients = grad(lambda *x: total(given.call(*x)), argnums=every)
    ahead, behind = (given.gradients(given.moved(given.along, by)) for by in (1e-5, -1e-5))
    wanted = [(a - b) / 2e-5 for a, b in zip(ahead, behind, strict=True)]
    yield jvp(gradients, tuple(given.x), tuple(given.t))[1], wanted
    yield vjp(gradients, *given.x)[1](tuple(given.t)), wanted  # a Hessian is symmetric


def twice(given: Given) -> Pairs:
    leaves = [x.clone().requires_grad_() for x in given.x]
    first = torch.autograd.grad(total(given.call(*leaves)), leaves, create_graph=True)
    found = torch.autograd.grad(first, leaves, given.t)
    ahead, behind = (given.gradients(given.moved(given.along, by)) for by in (1e-5, -1e-5))
    yield found, [(a - b) / 2e-5 for a, b in zip(ahead, behind, strict=True)]


TRANSFORMS = {
    "jvp": forward_mode,
    "forward_ad": forward_mode_of_each,
    "forward_ad and autograd": forward_mode_of_parameters,
    "jacfwd": jacobian_forward,
    "vjp": reverse_mode,
    "jacrev": jacobian_reverse,
    "vmap": vectorised,
    "vmap of vmap": vectorised_twice,
    "vmap of none": vectorised_none,
    "vmap of grad": gradients_of_each,
    "autograd of vmap": autograd_of_vectorised,
    "many gradients": many_gradients,
    "jvp of grad": second_derivatives,
    "twice": twice,
}


def batches(given: Given, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """So many of every tensor, in float64 and in float32."""
    wide = [torch.stack([x + n * 0.1 * t for n in range(count)]) for x, t in zip(given.wide, given.along, strict=True)]
    return wide, [x.float() for x in wide]


def assert_close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, Tensor):
        assert found is not None and found.shape == wanted.shape
        assert (found.double() - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6
        return
    assert len(found) == len(wanted)
    for mine, true in zip(found, wanted, strict=True):
        assert_close(mine, true)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_right_or_refused_in_our_words(name: str, transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (name, transform) == ("patch_embed", "vmap of none"):
        pytest.skip("torch's own cat does not take it")
    given, refusal = Given(CASES[name], monkeypatch), REFUSED.get((name, transform))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if refusal is not None:
            with pytest.raises(BackendError, match=refusal):
                list(TRANSFORMS[transform](given))
            return
        for found, wanted in TRANSFORMS[transform](given):
            assert_close(found, wanted)


@pytest.mark.parametrize("name", ["scan", "vim_block"])
def test_a_graph_made_outside_refuses_a_tangent_inside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward pass is a kernel's by then, which would leave the tangent out."""
    given = Given(CASES[name], monkeypatch)
    x = given.x[0].requires_grad_()
    y = given.call(x, *given.x[1:])

    def go_back(of_result: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, of_result, retain_graph=True)[0]

    with pytest.raises(BackendError, match=r"torch\.func"):
        jvp(go_back, (torch.ones_like(y),), (torch.ones_like(y),))
    assert_close(vmap(go_back)(torch.ones(2, *y.shape)), torch.stack([go_back(torch.ones_like(y)).double()] * 2))


def test_a_column_described_outside_refuses_to_run_inside() -> None:
    block = random_block("bidirectional", width=16, inner=32, states=16)
    x = torch.randn(1, L, 16)
    with torch.no_grad():
        run = VimColumn([block]).segments(x)
        if run is None:
            pytest.skip("no kernel runs a column here")
        with pytest.raises(BackendError, match="described outside of"):
            jvp(lambda v: run(v, 0, 1), (x,), (x,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scan", "conv", "ssm", "vim_block"])
def test_compiled_they_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(CASES[name], monkeypatch)
    several = batches(given, 2)[1]
    for transform, arguments in (
        (lambda *x: jvp(given.call, x, tuple(given.t))[1], given.x),
        (vmap(given.call), several),
        (vmap(grad(lambda *x: total(given.call(*x)))), several),
    ):
        torch.compiler.reset()
        assert_close(torch.compile(transform, backend="aot_eager")(*arguments), transform(*arguments).double())
