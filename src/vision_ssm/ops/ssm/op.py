"""The selective state-space model from its input to its gated output, summed over its directions.

    u = silu(conv(x))        (step, B, C) = x_proj u        delta = softplus(dt_proj step + dt_bias)
    h[t] = exp(delta[t] A) * h[t-1] + delta[t] B[t] u[t]        A = -exp(A_log)
    y[t] = (sum over directions of C[t] . h[t] + D u[t]) * silu(z[t])

x, z and y [B, L, C], along K walks over the tokens. In one pass for inference on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.conv.contract import MOST_TAPS
from vision_ssm.ops.dispatch import choose, refuse_tracing
from vision_ssm.ops.gate import check_tensors, show
from vision_ssm.ops.native import DTYPES
from vision_ssm.ops.registration import Operator, register
from vision_ssm.ops.ssm import reference
from vision_ssm.ops.ssm.contract import SsmWeights, misfit_of
from vision_ssm.ops.transforms import transformed
from vision_ssm.ops.traversal import WORDS, Cover, Traversal, checked_traversals, cover_of, flatten

__all__ = ["applies", "selective_ssm"]


def applies(
    x: Tensor, traversals: Sequence[Traversal], parameters: Sequence[Tensor], conv_weight: Tensor | None = None
) -> bool:
    """Tell whether :func:`selective_ssm` takes one pass over the tokens: same result, less memory and time.

    It does where no gradient is wanted, nothing is being traced or transformed, the C++ kernel is the backend, the
    parameters share float32 or bfloat16, and the walks visit every token each, or once between them.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return False
    if (
        torch.compiler.is_compiling()
        or transformed()
        or x.device.type != "cpu"
        or x.dtype not in DTYPES
        or x.numel() == 0
    ):
        return False
    if any(p.dtype != parameters[0].dtype for p in parameters) or parameters[0].dtype not in DTYPES:
        return False
    if conv_weight is not None and conv_weight.shape[2] > MOST_TAPS:
        return False
    if choose("ssm", x.device, x.dtype).name != "cpu":
        return False
    return cover_of(tuple(traversals), x.shape[1]) != Cover.SOME


def selective_ssm(
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
    """Convolve, project, scan, gate and sum the directions.

    Where :func:`applies`, a tile of tokens at a time, with every intermediate result in float32 and in cache, and the
    result of inference: it has no gradient. Elsewhere :func:`causal_conv1d`, two products and :func:`selective_scan`
    one after the other, each on its own backend.

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
        ShapeError: a tensor does not fit the others or is not floating, or a traversal leaves the tokens or visits one
            twice.
        BackendError: the backend asked for cannot run these tensors.

    Source: Mamba, arXiv:2312.00752, Alg. 2 and fig. 3; Vim, arXiv:2401.09417, Alg. 1 for two directions.
    """
    refuse_tracing("selective_ssm")
    weights = SsmWeights(A_log, D, x_proj_weight, dt_proj_weight, dt_proj_bias, conv_weight, conv_bias)
    _check(x, z, weights, len(traversals), len(reverse))
    learns_gate = z is not None and z.requires_grad and torch.is_grad_enabled()
    present = [w for w in weights if w is not None]
    if learns_gate or not _even(x, z, weights) or not applies(x, traversals, present, conv_weight):
        return reference.forward(x, z, weights, traversals, reverse)
    y: Tensor = torch.ops.vision_ssm.selective_ssm(x, z, *weights, flatten(traversals), list(reverse))
    return y


def _check(x: Tensor, z: Tensor | None, weights: SsmWeights, directions: int, sets_looking: int) -> None:
    """Raise ShapeError unless everything fits x and the walks."""
    check_tensors("selective_ssm", x, "z", "conv_weight", "conv_bias", x=x, z=z, **weights._asdict())
    shapes = {name: None if w is None else w.shape for name, w in weights._asdict().items()}
    misfit = misfit_of(shapes, directions, sets_looking)
    if misfit is None and (x.dim() != 3 or x.shape[2] != weights.A_log.shape[1]):
        misfit = f"x must be [B, L, {weights.A_log.shape[1]}] to fit A_log, got {show(x.shape)}"
    if misfit is None and z is not None and z.shape != x.shape:
        misfit = f"z must be {show(x.shape)} as x is, got {show(z.shape)}"
    if misfit is not None:
        raise ShapeError(f"selective_ssm: {misfit}")


def _even(x: Tensor, z: Tensor | None, weights: SsmWeights) -> bool:
    """Tell whether the kernel can be told what the reference works out by broadcasting, promotion and defaults."""
    sets = weights.dt_proj_weight.shape[0]
    shared = all(w.shape[0] == sets for w in (weights.D, weights.x_proj_weight, weights.dt_proj_bias))
    biased = weights.conv_weight is None or weights.conv_bias is not None
    return shared and biased and (z is None or z.dtype == x.dtype)


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
    backend = choose("ssm", x.device, x.dtype)
    if backend.name != "cpu":
        raise BackendError(f"vision_ssm::selective_ssm runs on the 'cpu' backend only, not on {backend.name!r}")
    weights = SsmWeights(A_log, D, x_proj_weight, dt_proj_weight, dt_proj_bias, conv_weight, conv_bias)
    _check(x, z, weights, len(walks) // WORDS, len(reverse))
    y: Tensor = backend.functions.forward(x, z, weights, checked_traversals(tuple(walks), x.shape[1]), reverse)
    return y


def _composite(x: Tensor, z: Tensor | None, *rest: Any) -> Tensor:
    *weights, walks, reverse = rest
    return reference.forward(x, z, SsmWeights(*weights), checked_traversals(tuple(walks), x.shape[1]), reverse)


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _no_gradient(*_: Any) -> Any:
    raise BackendError(
        "vision_ssm::selective_ssm is for inference and has no gradient; call vision_ssm.ops.selective_ssm"
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


register(
    "selective_ssm",
    "(Tensor x, Tensor? z, Tensor A_log, Tensor D, Tensor x_proj_weight, Tensor dt_proj_weight, Tensor dt_proj_bias, "
    "Tensor? conv_weight, Tensor? conv_bias, SymInt[] walks, bool[] reverse) -> Tensor",
    None,
    Operator(_forward, _no_gradient, _forward_fake, _no_gradient, _setup_context, _no_gradient, _composite),
)
