"""The residual addition and the norm that follows it, in one pass over the stream where the Triton backend runs.

    s = x + added        y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias        kind 'layer'
                         y = s / sqrt(mean(s^2) + eps) * weight + bias                 kind 'rms'

x, added, s and y [..., C], mean and variance over the last axis, weight and bias [C].
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ConfigError, ShapeError, suggestion
from vision_ssm.ops.add_norm import reference
from vision_ssm.ops.add_norm.contract import NORMS
from vision_ssm.ops.dispatch import choose, has_kernels, intercepted
from vision_ssm.ops.gate import check_tensors
from vision_ssm.ops.gpu import DTYPES, INTERPRET
from vision_ssm.ops.native import PLAIN
from vision_ssm.ops.registration import Operator, register

__all__ = ["add_norm", "applies"]

MOST_CHANNELS = 4096  # a program holds whole rows
# In smaller streams the time is that of launching: two operations of torch take less of it than one of ours, which pays
# with passes over memory. An estimate: a million float32 elements are read in 2 to 5 us. benchmarks/gpu.py measures it.
LEAST_ELEMENTS = 2**20


def applies(x: Tensor, added: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None) -> bool:
    """Tell whether :func:`add_norm` takes fewer passes over memory than the addition and the norm, same result.

    It does where Triton's backend is x's, x is large, and nothing watches or transforms operations. Nor is anything
    being compiled: inductor makes one kernel of the two operations itself. Of the other tensors, those that are given
    must have the shapes that it takes, and float32, bfloat16 or float16 values on x's device.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    # Asking for the backend takes longer than a small block: elsewhere than on GPUs only the interpreter is worth it.
    if not x.is_cuda and not (x.is_cpu and os.environ.get(INTERPRET) == "1"):
        return False
    if x.numel() < LEAST_ELEMENTS or x.dtype not in DTYPES or intercepted():
        return False
    if choose("add_norm", x.device, x.dtype).name != "triton":
        return False
    others = [t for t in (added, weight, bias) if t is not None]
    if any(type(t) not in PLAIN or t.dtype not in DTYPES or t.device != x.device for t in others):
        return False
    return _misfit(x, added, weight, bias) is None and x.shape[-1] <= MOST_CHANNELS


def add_norm(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, kind: str = "rms"
) -> tuple[Tensor, Tensor]:
    """Return (x + added, norm(x + added)); gradients may come into either or both.

    Read and written once on the Triton backend, for up to 4096 channels; elsewhere torch's own operations.

    Args:
        x: stream, [..., C].
        added: the same shape.
        weight: of the norm, [C].
        bias: of the norm, [C].
        eps: added to the mean square.
        kind: 'rms', or 'layer' for the mean taken off before.

    Returns:
        The sum, in the dtype that torch gives it, and the norm in the weight's dtype. The kernel computes everything in
        float32, and the same call gives the same bits, also in the gradients.

    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: there is no such kind.
        BackendError: the backend asked for cannot run these tensors.
    """
    check_tensors("add_norm", x, "bias", x=x, added=added, weight=weight, bias=bias)
    misfit = _misfit(x, added, weight, bias)
    if misfit is not None:
        raise ShapeError(misfit)
    if kind not in NORMS:
        raise ConfigError(f"kind must be one of {', '.join(NORMS)}, got {kind!r}.{suggestion(kind, NORMS)}")
    if x.shape[-1] > MOST_CHANNELS or not has_kernels("add_norm", x.device, x.dtype, added.dtype, weight.dtype):
        return reference.forward(x, added, weight, bias, eps, kind)
    stream, normalised = torch.ops.vision_ssm.add_norm(x, added, weight, bias, eps, kind)
    return stream, normalised


def _misfit(x: Tensor, added: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Return what does not fit, or None."""
    if x.dim() == 0 or (added is not None and added.shape != x.shape):
        other = None if added is None else list(added.shape)
        return f"add_norm expects x [..., C] and added of the same shape, got {list(x.shape)} and {other}"
    wanted = x.shape[-1:]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != wanted:
            return f"add_norm expects {name} {list(wanted)}, got {list(parameter.shape)}"
    return None


def _forward(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    for dtype in {x.dtype, added.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype}:
        backend = choose("add_norm", x.device, dtype)
        if backend.name != "triton":
            raise BackendError(f"vision_ssm::add_norm runs on the 'triton' backend only, not on {backend.name!r}")
    from vision_ssm.ops.add_norm import triton as triton_norm

    return triton_norm.forward(x, added, weight, bias, eps, centred=kind == "layer")


def _backward(
    grad_stream: Tensor | None,
    grad: Tensor,
    stream: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    kind: str,
    x_dtype: torch.dtype,
    added_dtype: torch.dtype,
    parameters: bool,
) -> tuple[Tensor, ...]:
    from vision_ssm.ops.add_norm import triton as triton_norm

    gradients = triton_norm.backward(
        stream,
        weight,
        bias,
        grad_stream,
        grad,
        eps,
        (x_dtype, added_dtype),
        centred=kind == "layer",
        parameters=parameters,
    )
    return tuple(stream.new_empty(0) if x is None else x for x in gradients)


def _forward_fake(x: Tensor, added: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    total = torch.promote_types(x.dtype, added.dtype)
    return x.new_empty(x.shape, dtype=total), x.new_empty(x.shape, dtype=weight.dtype)


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    _, _, stream, weight, bias, _, _, x_dtype, added_dtype, parameters = args
    return (
        stream.new_empty(stream.shape, dtype=x_dtype),
        stream.new_empty(0) if x_dtype == added_dtype else stream.new_empty(stream.shape, dtype=added_dtype),
        weight.new_empty(weight.shape) if parameters else stream.new_empty(0),
        bias.new_empty(bias.shape) if parameters and bias is not None else stream.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, added, weight, bias, eps, kind = inputs
    ctx.save_for_backward(output[0], weight, bias)
    ctx.rest = (eps, kind, x.dtype, added.dtype)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_stream: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    x_dtype, added_dtype = ctx.rest[2:]
    if grad is None:
        passed = [None if grad_stream is None else grad_stream.to(dtype) for dtype in (x_dtype, added_dtype)]
        return (*passed, None, None, None, None)
    stream, weight, bias = ctx.saved_tensors
    parameters = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    dx, dadded, dweight, dbias = torch.ops.vision_ssm.add_norm_backward(
        grad_stream, grad, stream, weight, bias, *ctx.rest, parameters
    )
    return (
        dx,
        dx if x_dtype == added_dtype else dadded,
        dweight if parameters else None,
        dbias if parameters and bias is not None else None,
        None,
        None,
    )


register(
    "add_norm",
    "(Tensor x, Tensor added, Tensor weight, Tensor? bias, float eps, str kind) -> (Tensor, Tensor)",
    "(Tensor? grad_stream, Tensor grad, Tensor stream, Tensor weight, Tensor? bias, float eps, str kind, "
    "ScalarType x_dtype, ScalarType added_dtype, bool parameters) -> (Tensor, Tensor, Tensor, Tensor)",
    Operator(_forward, _backward, _forward_fake, _backward_fake, _setup_context, _autograd, reference.forward),
)
