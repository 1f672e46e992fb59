"""Whole models under transforms of torch: per-sample gradients, derivatives forwards, ensembles, second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap

import vision_ssm
from vision_ssm.ops.dispatch import ENVIRONMENT_VARIABLE

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vim": ("vim_nano", {"depth": 2}),
    "vim, layer norm": ("vim_nano", {"depth": 2, "norm_layer": "layer"}),
    "vmamba": ("vmamba_nano", {}),
    "vmamba, gated": ("vmamba_nano", {"gate": True}),
    "vig": ("vig_nano", {"depth": 2}),
    "efficientvmamba": ("efficientvmamba_nano", {}),
}
TARGETS = torch.tensor([0, 1, 2])
Parameters = dict[str, Tensor]


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    variant, options = MODELS[name]
    model = vision_ssm.create_model(variant, num_classes=3, **options).eval()
    with torch.no_grad():
        for p in model.parameters():  # away from zero, where ReLU has a derivative on either side
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small operations: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    yield build(request.param)


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def parameters(model: nn.Module) -> Parameters:
    return {name: p.detach() for name, p in model.named_parameters()}


def like(of: Parameters) -> Parameters:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(p.shape, generator=generator) * 0.1 for name, p in of.items()}


def slope(model: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor, along: Tensor, moved: Parameters) -> Tensor:
    """The derivative of the logits along images and parameters: finite differences of the reference in float64."""
    own = {name: p.double() for name, p in parameters(model).items()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in model.named_buffers()}

    def at(by: float) -> Tensor:
        there = {name: p + by * moved[name].double() if name in moved else p for name, p in own.items()}
        return functional_call(model, (there, buffers), (x.double() + by * along.double(),))

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setenv(ENVIRONMENT_VARIABLE, "reference")
        return (at(1e-6) - at(-1e-6)) / 2e-6


def assert_close(found: Tensor | None, wanted: Tensor, tolerance: float = 1e-3) -> None:
    assert found is not None and found.shape == wanted.shape
    assert (found.double() - wanted.double()).norm() <= tolerance * wanted.double().norm() + 1e-7


def dual(model: nn.Module, x: Tensor, along: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        tangent: Tensor | None = forward_ad.unpack_dual(model(forward_ad.make_dual(x, along))).tangent
        return tangent


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


FORWARDS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor | None]] = {
    "jvp": lambda m, x, t: jvp(m, (x,), (t,))[1],
    "jvp of detached parameters": lambda m, x, t: jvp(lambda v: functional_call(m, parameters(m), (v,)), (x,), (t,))[1],
    "jvp of a frozen model": lambda m, x, t: jvp(frozen(m), (x,), (t,))[1],
    "forward_ad": dual,
}


@pytest.mark.parametrize("gradients", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("way", FORWARDS)
def test_derivatives_along_an_image(
    model: nn.Module, way: str, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, t = images(2), images(2, seed=3)
    with torch.set_grad_enabled(gradients):
        found = FORWARDS[way](model, x, t)
    assert_close(found, slope(model, monkeypatch, x, t, {}))


@pytest.mark.parametrize("gradients", [True, False])
def test_derivatives_along_the_parameters(model: nn.Module, gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, own = images(1), parameters(model)
    with torch.set_grad_enabled(gradients):
        model(x)  # so that what a call finds out once is known
        found = jvp(lambda p: functional_call(model, p, (x,)), (own,), (like(own),))[1]
    assert_close(found, slope(model, monkeypatch, x, torch.zeros_like(x), like(own)))


def loss(model: nn.Module, p: Parameters, x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, p, (x[None],)), target[None])


def test_gradients_of_each_image(model: nn.Module) -> None:
    x = images()
    each = vmap(grad(lambda p, x, y: loss(model, p, x, y)), in_dims=(None, 0, 0))(parameters(model), x, TARGETS)
    for n in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[n : n + 1]), TARGETS[n : n + 1]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            scale = p.grad.abs().max() + 1e-6
            assert (each[name][n] - p.grad).abs().max() <= 1e-3 * scale, name


@pytest.mark.parametrize("dim", [0, -1])
def test_images_through_vmap(model: nn.Module, dim: int) -> None:
    x = images()
    with torch.no_grad():
        found = vmap(lambda v: model(v[None])[0], in_dims=dim)(x.movedim(0, dim))
        assert_close(found, model(x), 1e-4)
    y = vmap(lambda v: model(v[None])[0])(x)
    first = next(model.parameters())
    assert_close(torch.autograd.grad(y.sum(), first)[0], torch.autograd.grad(model(x).sum(), first)[0])


@pytest.mark.parametrize("name", MODELS)
def test_ensembles(name: str) -> None:
    models, x = [build(name, seed) for seed in (0, 1)], images(2)
    own, buffers = stack_module_state(models)
    with torch.no_grad():
        found = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(own, buffers)
        assert_close(found, torch.stack([model(x) for model in models]), 1e-4)


def test_many_gradients_of_one_graph(model: nn.Module) -> None:
    y, first = model(images(1)), next(model.parameters())
    each = [torch.autograd.grad(y[0, k], first, retain_graph=True)[0] for k in range(3)]
    found = torch.autograd.grad(y, first, torch.eye(3)[:, None], is_grads_batched=True)[0]
    assert_close(found, torch.stack(each))


def test_recomputing_stands_back(model: nn.Module) -> None:
    x = images(1)
    wanted = jacrev(model)(x)
    model.set_grad_checkpointing()  # type: ignore[operator]
    assert_close(jacrev(model)(x), wanted, 1e-6)


@pytest.mark.slow
def test_second_derivatives(model: nn.Module) -> None:
    """Forwards over reverse, against reverse over reverse; the Hessian is symmetric."""
    own, x = parameters(model), images(1)[0]
    gradients = grad(lambda p: loss(model, p, x, TARGETS[0]))
    found = jvp(gradients, (own,), (like(own),))[1]
    wanted = vjp(gradients, own)[1](like(own))[0]
    for name in own:
        assert_close(found[name], wanted[name])
