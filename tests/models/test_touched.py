"""A model that somebody watches or has changed does what its modules say, called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.ops.scan.cases import relative_error
from vision_ssm.layers import untouched as question
from vision_ssm.models import create_model

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vim": ("vim_nano", {"depth": 3}),
    "vim scaled": ("vim_nano", {"depth": 2, "layer_scale": 0.5, "norm_layer": "layer", "class_token": "double"}),
    "vmamba": ("vmamba_nano", {"depths": (1, 1, 2, 1)}),
    "vmamba gated": ("vmamba_nano", {"depths": (1, 1, 1, 1), "gate": True, "downsample": "v2", "stem": "v1"}),
    "vig": ("vig_nano", {"depth": 2}),
    # Patches of 2, or the last stage would have one token, where gates are without effect.
    "vig_h": ("vig_h_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 16, "patch_size": 2}),
    "efficient": ("efficientvmamba_nano", {"depths": (1, 1, 1, 1), "mlp_ratio": 2.0}),
}


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    name, options = FAMILIES[family]
    model: nn.Module = create_model(name, num_classes=3, **options).eval()
    for key, parameter in model.named_parameters():  # so that nothing hides behind zeros and ones
        parameter.data.add_(0.02 * torch.randn_like(parameter))
        if ".gate_" in key or ".qkv_proj" in key:  # attention begins far below its norm's epsilon, its gates near 1
            parameter.data.mul_(10)
    return model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def kinds(model: nn.Module) -> Iterator[str]:
    """One module of every kind and role; where there are several, not the first."""
    last = {}
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            last[(type(module), name.rpartition(".")[2] if not name.rpartition(".")[2].isdigit() else "")] = name
    yield from last.values()


def skewed(out: Any) -> Any:
    """Another factor for every value: no norm takes that back."""
    if isinstance(out, tuple):
        return (skewed(out[0]), *out[1:])
    return out * (1 + 0.5 * torch.sin(torch.arange(out.numel()))).view(out.shape)


class Adapter(nn.Module):
    """Stands in a layer's place and hands its attributes on, as adapters do."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.factor = nn.Parameter(torch.tensor(2.0))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = skewed(self.base_layer(*args, **kwargs))
        return (self.factor * out[0], *out[1:]) if isinstance(out, tuple) else self.factor * out


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs()


def class_patch(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    kind = type(model.get_submodule(name))
    plain = kind.forward
    patch.setattr(kind, "forward", lambda self, *args, **kwargs: skewed(plain(self, *args, **kwargs)))


def instance_patch(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    module = model.get_submodule(name)
    plain = module.forward
    module.forward = lambda *args, **kwargs: skewed(plain(*args, **kwargs))


def forward_hook(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    model.get_submodule(name).register_forward_hook(lambda _, __, out: skewed(out))


def pre_hook(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: (skewed(args[0]), *args[1:]))


def replaced(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, Adapter(model.get_submodule(name)))


def parametrized(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    module = model.get_submodule(name)
    for parameter, _ in list(module.named_parameters(recurse=False)):
        parametrize.register_parametrization(module, parameter, Squared())


def pruned(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    module = model.get_submodule(name)
    for parameter, _ in list(module.named_parameters(recurse=False)):
        prune.random_unstructured(module, parameter, 0.5)


def spectral(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    parametrizations.spectral_norm(model.get_submodule(name))


def spectral_by_hook(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    nn.utils.spectral_norm(model.get_submodule(name))


def method_patch(model: nn.Module, name: str, patch: pytest.MonkeyPatch) -> None:
    """Methods that a forward calls, of every class that has some."""
    module = model.get_submodule(name)
    for method in ("branch", "weights"):
        if hasattr(module, method):
            plain = getattr(module, method)
            change = (
                (lambda f: lambda *a: skewed(f(*a)))
                if method == "branch"
                else (lambda f: lambda: tuple(1.5 * w for w in f()))
            )
            setattr(module, method, change(plain))


TOUCHES: dict[str, Callable[[nn.Module, str, pytest.MonkeyPatch], None]] = {
    "class": class_patch,
    "instance": instance_patch,
    "method": method_patch,
    "hook": forward_hook,
    "pre-hook": pre_hook,
    "replaced": replaced,
    "parametrized": parametrized,
    "pruned": pruned,
    "spectral": spectral,
    "spectral by a hook": spectral_by_hook,
}


def applicable(model: nn.Module, name: str, touch: str) -> bool:
    module = model.get_submodule(name)
    own = [p for p, _ in module.named_parameters(recurse=False)]
    if touch in ("parametrized", "pruned"):
        return bool(own)
    if touch.startswith("spectral"):
        return isinstance(module, nn.Linear | nn.Conv2d)
    if touch == "method":
        return hasattr(module, "branch") or hasattr(module, "weights")
    return True


def inferred(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(images())


def trained(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    y = model(images())
    (y * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


# All of it takes minutes. In the quick part every touch meets Vim; of touches that are seen by the same question, such
# as hooks before and behind a module, one meets the others.
ALIKE = ("class", "instance", "pre-hook", "pruned", "spectral", "spectral by a hook")
ALIKE_TOO = ("vim scaled", "vmamba gated", "vig_h")  # the blocks are those of others, with other options


def pairs() -> Iterator[Any]:
    for family in FAMILIES:
        for touch in TOUCHES:
            slow = family in ALIKE_TOO or (family != "vim" and touch in ALIKE)
            yield pytest.param(family, touch, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("family", "touch"), pairs())
def test_a_touched_model_is_its_modules(family: str, touch: str) -> None:
    untouched = build(family)
    plain = inferred(untouched)
    names = [name for name in kinds(untouched) if applicable(untouched, name, touch)]
    assert names or touch == "method"  # which some have none of
    for name in names:
        with pytest.MonkeyPatch.context() as patch:
            model = build(family)
            inferred(model)  # whatever is remembered of it before
            TOUCHES[touch](model, name, patch)
            found, gradients = inferred(model), trained(model)
            patch.setattr(question, "_watched", lambda: True)
            expected, wanted = inferred(model), trained(model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda m, at=name: f"{at}: {m}")
        assert len(gradients) == len(wanted), name
        for one, other in zip(gradients, wanted, strict=True):
            assert relative_error(one, other) <= 1e-2 or (one - other).abs().max() <= 1e-5, name
        if not touch.startswith("spectral"):  # one factor for a whole weight, which a norm may take back
            assert not torch.allclose(found, plain, rtol=1e-5, atol=1e-7), f"{name} was passed by"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grad", [False, True])
def test_every_hook_hears_of_its_module_and_what_it_keeps_stays(family: str, grad: bool) -> None:
    model, kept, copies = build(family), {}, {}

    def keep(name: str, out: Any) -> None:
        if isinstance(out, Tensor):
            kept[name], copies[name] = out, out.detach().clone()

    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, at=name: keep(at, out))
    with torch.set_grad_enabled(grad):
        model(images())
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)} <= kept.keys()
    assert all(torch.equal(kept[name].detach(), copies[name]) for name in kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_backward_hooks_on_all_modules_change_no_gradient(family: str) -> None:
    model, heard = build(family), set()
    expected = trained(model)
    for name, module in model.named_modules():
        if name:
            module.register_full_backward_hook(lambda *_, at=name: heard.add(at))
    for one, other in zip(trained(model), expected, strict=True):
        assert relative_error(one, other) <= 1e-3 or (one - other).abs().max() <= 1e-5
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)} <= heard


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_that_a_hook_hands_back_is_not_written_over(family: str) -> None:
    for name in kinds(build(family)):
        model, seen = build(family), []
        handle = model.get_submodule(name).register_forward_hook(lambda _, __, out, to=seen: to.append(out))
        inferred(model)
        handle.remove()
        if seen and isinstance(seen[0], Tensor):
            given, before = seen[0].clone(), seen[0].clone()
            model.get_submodule(name).register_forward_hook(lambda *_, own=given: own)
            assert torch.equal(inferred(model), inferred(model)), name
            assert torch.equal(given, before), name


@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_int8_layers_are_called(family: str) -> None:
    model = build(family)
    plain = inferred(model)
    with pytest.warns(DeprecationWarning) if hasattr(torch.ao, "quantization") else pytest.MonkeyPatch.context():
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    layers = sum(isinstance(module, torch.ao.nn.quantized.dynamic.Linear) for module in quantised.modules())
    assert layers == sum(isinstance(module, nn.Linear) for module in model.modules())
    assert float((inferred(quantised) - plain).norm() / plain.norm()) < 0.3
