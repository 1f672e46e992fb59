"""Depthwise causal convolution along the token sequence, in one or both directions, channel-last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.conv import cpu as cpu_conv
from vision_ssm.ops.dispatch import AUTO, choose
from vision_ssm.ops.native import BEST
from vision_ssm.ops.registration import Operator, register
from vision_ssm.ops.scan.cpu import CpuBackend
from vision_ssm.ops.scan.triton import TritonBackend

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
        ShapeError: the shapes do not fit.

    Source: the conv1d of Mamba's block (arXiv:2312.00752, fig. 3); zero padding before the first token.
    """
    if x.dim() != 3 or weight.dim() != 3 or weight.shape[:2] != (len(reverse), x.shape[2]):
        raise ShapeError(
            f"causal_conv1d expects x [B, L, C] and weight [{len(reverse)}, C, T], "
            f"got x {list(x.shape)}, weight {list(weight.shape)}"
        )
    if bias is None:
        bias = weight.new_zeros(weight.shape[:2])
    if tuple(bias.shape) != tuple(weight.shape[:2]):
        raise ShapeError(f"causal_conv1d expects bias {list(weight.shape[:2])}, got {list(bias.shape)}")
    if weight.shape[2] <= cpu_conv.MOST_TAPS and _has_kernels(x.device, x.dtype):
        result: Tensor = torch.ops.vision_ssm.causal_conv1d(
            x, weight.to(torch.float32), bias.to(torch.float32), list(reverse), activation
        )
        return result
    return _shifted_products(x, weight.to(x.dtype), bias.to(x.dtype), reverse, activation)


def _shifted_products(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    """The convolution in torch operations: one multiply-add of a shifted view per tap, no transposed copy."""
    tokens, taps = x.shape[1], weight.shape[2]
    past = taps - 1
    padded = F.pad(x, (0, 0, past, past))
    results = []
    for k, backwards in enumerate(reverse):
        y = bias[k]
        for tap in range(taps):
            # Tap j reaches `past - j` tokens back; going backwards it reaches as far ahead.
            first = 2 * past - tap if backwards else tap
            y = torch.addcmul(y, padded[:, first : first + tokens], weight[k, :, tap])
        results.append(F.silu(y) if activation else y)
    # Directions outermost in memory: each is then one contiguous operand of the products that follow.
    return torch.stack(results).transpose(0, 1)


# Asked for its answer where a call is traced: tracing need not see through the properties of a device.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    return isinstance(choose(AUTO, device, dtype), (CpuBackend, TritonBackend))


def _instruction_set(x: Tensor) -> int | None:
    """Return the C++ kernel's instruction set for x, or None where the Triton kernels take it."""
    backend = choose(AUTO, x.device, x.dtype)
    if isinstance(backend, TritonBackend):
        return None
    if x.device.type != "cpu":
        raise BackendError(f"vision_ssm::causal_conv1d has no kernel for {x.device} on the backend {backend.name!r}")
    return backend.isa if isinstance(backend, CpuBackend) else BEST


def _forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    isa = _instruction_set(x)
    if isa is not None:
        return cpu_conv.forward(x, weight, bias, reverse, activation, isa)
    from vision_ssm.ops.conv import triton as triton_conv

    return triton_conv.forward(x, weight, bias, reverse, activation)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    isa = _instruction_set(x)
    if isa is not None:
        return cpu_conv.backward(grad, x, weight, bias, reverse, activation, isa)
    from vision_ssm.ops.conv import triton as triton_conv

    return triton_conv.backward(grad, x, weight, bias, reverse, activation)


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
    Operator(_forward, _backward, _forward_fake, _backward_fake, _setup_context, _autograd),
)
