"""Depthwise causal convolution along the token sequence, in one or both directions, channel-last.

    y[t] = silu(bias + sum over j of weight[j] x[t - (T - 1) + j])        x = 0 before the first token

x [B, L, C], weight [K, C, T], bias [K, C]; y [B, K, L, C], one result per direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.conv import reference
from vision_ssm.ops.conv.contract import MOST_TAPS
from vision_ssm.ops.dispatch import REFERENCE, Backend, choose, has_kernels, refuse_tracing
from vision_ssm.ops.gate import check_tensors
from vision_ssm.ops.registration import Operator, register

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    reverse: Sequence[bool] = (False,),
    activation: bool = True,
) -> Tensor:
    """Convolve every channel with its own taps, looking back only; one result per direction.

    Args:
        x: tokens, [B, L, C].
        weight: taps from the oldest to the newest token, [K, C, T].
        bias: [K, C].
        reverse: for each of the K directions, whether "back" means towards the end of the sequence.
        activation: apply SiLU to the result.

    Returns:
        [B, K, L, C] in x's dtype, every result at its own token.

    Raises:
        ShapeError: the shapes do not fit, or a tensor is not floating or on another device than x.

    Source: the conv1d of Mamba's block (arXiv:2312.00752, fig. 3); zero padding before the first token.
    """
    refuse_tracing("causal_conv1d")
    _check(x, weight, bias, reverse)
    if bias is None:
        bias = weight.new_zeros(weight.shape[:2])
    if weight.shape[2] <= MOST_TAPS and has_kernels("conv", x.device, x.dtype):
        result: Tensor = torch.ops.vision_ssm.causal_conv1d(
            x, weight.to(torch.float32), bias.to(torch.float32), list(reverse), activation
        )
        return result
    return reference.forward(x, weight.to(x.dtype), bias.to(x.dtype), reverse, activation)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: Sequence[bool]) -> None:
    """Raise ShapeError, naming the tensor, unless everything fits."""
    check_tensors("causal_conv1d", x, "bias", x=x, weight=weight, bias=bias)
    fits = x.dim() == 3 and weight.dim() == 3 and weight.shape[:2] == (len(reverse), x.shape[2])
    if not fits or len(reverse) == 0 or weight.shape[2] == 0:
        raise ShapeError(
            f"causal_conv1d expects, for one direction and one tap at least, x [B, L, C] and "
            f"weight [{len(reverse)}, C, T], got x {list(x.shape)}, weight {list(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != tuple(weight.shape[:2]):
        raise ShapeError(f"causal_conv1d expects bias {list(weight.shape[:2])}, got {list(bias.shape)}")


def _kernels(x: Tensor) -> ModuleType:
    """Return the kernels that run x; on the CPU even where the reference is asked for after a graph was compiled."""
    backend = choose("conv", x.device, x.dtype)
    if backend.name == REFERENCE:
        if x.device.type != "cpu":
            raise BackendError(f"vision_ssm::causal_conv1d has no kernel for {x.device}")
        return Backend("conv", "cpu").functions
    return backend.functions


def _forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    _check(x, weight, bias, reverse)
    y: Tensor = _kernels(x).forward(x, weight, bias, reverse, activation)
    return y


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, bias, reverse)
    gradients: tuple[Tensor, Tensor, Tensor] = _kernels(x).backward(grad, x, weight, bias, reverse, activation)
    return gradients


def _composite(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return reference.forward(x.to(wide), weight.to(wide), bias.to(wide), reverse, activation).to(x.dtype)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    return x.new_empty((len(reverse), *x.shape)).transpose(0, 1)


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.vision_ssm.causal_conv1d_backward(grad, *ctx.saved_tensors, *ctx.rest), None, None)


_ARGUMENTS = "Tensor x, Tensor weight, Tensor bias, bool[] reverse, bool activation"
register(
    "causal_conv1d",
    f"({_ARGUMENTS}) -> Tensor",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    Operator(_forward, _backward, _forward_fake, _backward_fake, _setup_context, _autograd, _composite),
)
