"""The selective SSM from its input to its gated output in one pass over the tokens: inference on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import BackendError
from vision_ssm.ops.dispatch import AUTO, choose
from vision_ssm.ops.native import DTYPES
from vision_ssm.ops.registration import Operator, register
from vision_ssm.ops.scan.contract import Cover, checked_traversals, cover_of
from vision_ssm.ops.scan.cpu import CpuBackend
from vision_ssm.ops.ssm import cpu as cpu_ssm
from vision_ssm.ops.traversal import Traversal, flatten

__all__ = ["one_pass", "one_pass_applies"]


def one_pass_applies(
    x: Tensor, traversals: Sequence[Traversal], parameters: Sequence[Tensor], conv_weight: Tensor | None = None
) -> bool:
    """Tell whether :func:`one_pass` can stand in for convolution, projections and scan: same result, less memory.

    It does where no gradient is wanted, nothing is being traced, the C++ kernel is the backend, the parameters share
    float32 or bfloat16, and the walks visit every token each, or once between them.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return False
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in DTYPES or x.numel() == 0:
        return False
    if any(p.dtype != parameters[0].dtype for p in parameters) or parameters[0].dtype not in DTYPES:
        return False
    if conv_weight is not None and conv_weight.shape[2] > cpu_ssm.MOST_TAPS:
        return False
    if not isinstance(choose(AUTO, x.device, x.dtype), CpuBackend):
        return False
    return cover_of(tuple(traversals), x.shape[1]) != Cover.SOME


def one_pass(
    x: Tensor,
    z: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    *,
    traversals: Sequence[Traversal],
    reverse: Sequence[bool] = (),
) -> Tensor:
    """Convolve, project, scan, gate and sum the directions, a tile of tokens at a time.

    The same function as :func:`causal_conv1d`, two matrix products and :func:`selective_scan`, with every
    intermediate result in float32 and in cache. Call it where :func:`one_pass_applies`.

    Args:
        x: tokens, [B, L, C].
        z: gate, [B, L, C] or None; the result is multiplied by silu(z).
        A_log: [K, C, N]; A = -exp(A_log).
        D: skip connection, [K or 1, C].
        x_proj_weight: C channels to R + 2N values (low-rank step, B, C), [K or 1, R + 2N, C].
        dt_proj_weight: the low-rank step to C channels, [K or 1, C, R].
        dt_proj_bias: [K or 1, C].
        conv_weight: taps of the causal convolution before, [K or 1, C, T], followed by SiLU; None for neither.
        conv_bias: [K or 1, C].
        traversals: K walks over the L tokens.
        reverse: for each set of taps, whether it looks towards the end of the sequence.

    Returns:
        [B, L, C] in x's dtype.

    Raises:
        ShapeError: a traversal leaves the tokens or visits one twice.
        BackendError: the kernel cannot run, or a gradient is asked for.
    """
    y: Tensor = torch.ops.vision_ssm.selective_ssm(
        x,
        z,
        A_log,
        D,
        x_proj_weight,
        dt_proj_weight,
        dt_proj_bias,
        conv_weight,
        conv_bias,
        flatten(traversals),
        list(reverse),
    )
    return y


def _forward(
    x: Tensor,
    z: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    walks: Sequence[int],
    reverse: Sequence[bool],
) -> Tensor:
    backend = choose(AUTO, x.device, x.dtype)
    if not isinstance(backend, CpuBackend):
        raise BackendError(f"vision_ssm::selective_ssm runs on the 'cpu' backend only, not on {backend.name!r}")
    return cpu_ssm.forward(
        x,
        z,
        conv_weight,
        conv_bias,
        x_proj_weight,
        dt_proj_weight,
        dt_proj_bias,
        A_log,
        D,
        checked_traversals(tuple(walks), x.shape[1]),
        reverse,
        backend.isa,
    )


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _no_gradient(*_: Any) -> Any:
    raise BackendError("vision_ssm::selective_ssm is for inference and has no gradient; turn gradients on")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


register(
    "selective_ssm",
    "(Tensor x, Tensor? z, Tensor A_log, Tensor D, Tensor x_proj_weight, Tensor dt_proj_weight, Tensor dt_proj_bias, "
    "Tensor? conv_weight, Tensor? conv_bias, SymInt[] walks, bool[] reverse) -> Tensor",
    None,
    Operator(_forward, _no_gradient, _forward_fake, _no_gradient, _setup_context, _no_gradient),
)
