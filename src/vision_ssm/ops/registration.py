"""Registering an operator and its gradient with torch, so that compile and export see through both."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

from vision_ssm.errors import BackendError, ShapeError

__all__ = ["Operator", "register"]

NAMESPACE = "vision_ssm"


class Operator(NamedTuple):
    """The functions of one operator: real and fake (shapes only), forward and backward, and autograd's two."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    forward_fake: Callable[..., Any]
    backward_fake: Callable[..., Any]
    setup_context: Callable[..., None]
    autograd: Callable[..., Any]


def register(name: str, schema: str, backward_schema: str | None, operator: Operator) -> None:
    """Define ``vision_ssm::name`` and, given its schema, ``vision_ssm::name_backward``, for every device.

    It can be differentiated once: a gradient of its gradient raises BackendError.
    """
    forms = [(name, schema, operator.forward, operator.forward_fake)]
    if backward_schema is not None:
        forms.append((f"{name}_backward", backward_schema, operator.backward, operator.backward_fake))
    for form, form_schema, real, fake in forms:
        qualified = f"{NAMESPACE}::{form}"
        library.define(qualified, form_schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(qualified, "default", real)
        library.register_fake(qualified, _on_one_device(qualified, fake))
    library.register_autograd(f"{NAMESPACE}::{name}", operator.autograd, setup_context=operator.setup_context)
    if backward_schema is not None:

        def refuse(*_: Any) -> Any:
            raise BackendError(
                f"vision_ssm::{name} is differentiated once; a gradient of its gradient (create_graph=True) is not "
                "supported"
            )

        # Without this torch would only warn, and return gradients with that part missing.
        library.register_autograd(f"{NAMESPACE}::{name}_backward", refuse)


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
