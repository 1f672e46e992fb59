"""Registering an operator and its gradient with torch, so that compile, export and every transform see through both."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.transforms import has_tangent, transformed

__all__ = ["Operator", "register"]

NAMESPACE = "vision_ssm"
Registry: Any = vars(library)["Library"]  # torch leaves its methods without types


class Operator(NamedTuple):
    """The functions of one operator: real and fake (shapes only), forward and backward, autograd's two, and one more.

    ``composite`` has the arguments and results of ``forward`` and is made of torch's own operations, out of place: it
    stands in wherever ``torch.func`` or forward-mode differentiation is at work, for which the kernels have no rules.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    forward_fake: Callable[..., Any]
    backward_fake: Callable[..., Any]
    setup_context: Callable[..., None]
    autograd: Callable[..., Any]
    composite: Callable[..., Any]


def register(name: str, schema: str, backward_schema: str | None, operator: Operator) -> None:
    """Define ``vision_ssm::name`` and, given its schema, ``vision_ssm::name_backward``, for every device.

    Autograd differentiates it once: a gradient of its gradient raises BackendError. ``torch.func`` and forward-mode
    differentiation see its composite instead, which is differentiated any number of times. Under ``vmap`` alone it runs
    once for each.
    """
    forms = [(name, schema, operator.forward, operator.forward_fake)]
    if backward_schema is not None:
        forms.append((f"{name}_backward", backward_schema, operator.backward, operator.backward_fake))
    for form, form_schema, real, fake in forms:
        qualified = f"{NAMESPACE}::{form}"
        library.define(qualified, form_schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(qualified, "default", real)
        library.register_fake(qualified, _on_one_device(qualified, fake))
        library.register_vmap(qualified, _one_by_one(getattr(torch.ops.vision_ssm, form)))
    rules = _Rules(operator.composite)
    library.register_autograd(
        f"{NAMESPACE}::{name}", operator.autograd, setup_context=operator.setup_context, lib=rules
    )
    if backward_schema is not None:

        def refuse(*_: Any) -> Any:
            raise BackendError(
                f"vision_ssm::{name} is differentiated once; a gradient of its gradient (create_graph=True, or a "
                "transform of its backward pass alone) is not supported. torch.func (grad, jvp, hessian) around the "
                "whole function gives derivatives of any order"
            )

        # Without this torch would only warn, and return gradients with that part missing.
        library.register_autograd(f"{NAMESPACE}::{name}_backward", refuse, lib=_Rules(refuse, where=_differentiated))


class _Rules(Registry):  # type: ignore[misc]
    """Where torch puts an operator's rule for autograd: in front of it comes what stands in under transforms.

    Torch's rule would raise an error of its own under ``torch.func``, and leave tangents out without one.
    """

    _alive: list[_Rules] = []  # noqa: RUF012 -- of the class: torch forgets the rules with their library

    def __init__(self, instead: Callable[..., Any], where: Callable[..., bool] = lambda *_: True) -> None:
        super().__init__(NAMESPACE, "FRAGMENT")
        self._instead, self._where = instead, where
        self._alive.append(self)

    def impl(self, op_name: Any, fn: Any, dispatch_key: Any = "", **how: Any) -> None:
        """Register ``fn``, which takes the set of dispatch keys first."""
        instead, where = self._instead, self._where

        def kernel(keys: Any, *args: Any) -> Any:
            return instead(*args) if transformed() and where(*args) else fn(keys, *args)

        super().impl(op_name, kernel, dispatch_key, **how)


def _differentiated(*args: Any) -> bool:
    """Tell whether the result of these arguments is wanted in a derivative of any kind."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    return any((x.requires_grad and torch.is_grad_enabled()) or has_tangent(x) for x in tensors)


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return the rule of an operator for vmap: a call for each, and their results together."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        where = [dim if isinstance(dim, int) else None for dim in in_dims]
        if info.batch_size == 0:  # one of zeros has the shapes that none of them have
            args = tuple(
                a if d is None else torch.zeros_like(_shape_of_one(a, d)) for a, d in zip(args, where, strict=True)
            )
            results = [operator(*args)]
        else:
            rows = (
                [a if d is None else a.select(d, n) for a, d in zip(args, where, strict=True)]
                for n in range(info.batch_size)
            )
            results = [operator(*row) for row in rows]
        if isinstance(results[0], Tensor):
            return torch.stack(results)[: info.batch_size], 0
        together = tuple(torch.stack(same)[: info.batch_size] for same in zip(*results, strict=True))
        return together, (0,) * len(together)

    return rule


def _shape_of_one(x: Tensor, dim: int) -> Tensor:
    return x.new_empty([size for axis, size in enumerate(x.shape) if axis != dim])


def _on_one_device(operator: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse tensors of several devices: one parameter on meta has torch take the fake for all of them.

    What the fake makes is of any values, and lies where the other tensors do.
    """

    @wraps(fake)
    def checked(*args: Any) -> Any:
        devices = {str(x.device) for x in args if isinstance(x, Tensor)}
        if len(devices) > 1:
            raise ShapeError(f"{operator} expects all tensors on one device, got {' and '.join(sorted(devices))}")
        return fake(*args)

    return checked
