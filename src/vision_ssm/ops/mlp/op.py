"""The MLP branch of a block from the residual stream and back to it, in one call on the CPU.

s = x + added                                                x, added, s [..., C]
mlp_branch(x, added) = s + fc2(gelu(fc1(norm(s))))           fc1 to H hidden values, the exact GELU
"""

from __future__ import annotations

from torch import Tensor

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.ops.add_norm.contract import NORMS
from vision_ssm.ops.dispatch import native_call_applies
from vision_ssm.ops.gate import check_tensors
from vision_ssm.ops.mlp import cpu, reference
from vision_ssm.ops.mlp.contract import MlpWeights

__all__ = ["applies", "mlp_branch"]

NAMES = ("norm weight", "norm bias", *MlpWeights._fields[1:])  # of the weights, in the order of their tensors()
OPTIONAL = ("norm bias", "fc1_bias", "fc2_bias")


def applies(x: Tensor, added: Tensor, weights: MlpWeights) -> bool:
    """Tell whether :func:`mlp_branch` takes one call: same result, less memory and time.

    It does where :func:`vision_ssm.ops.dispatch.native_call_applies`, the shapes fit and both layers have a bias.
    """
    tensors = [added, *(w for w in weights.tensors() if w is not None)]
    whole = weights.norm.kind in NORMS and weights.fc1_bias is not None and weights.fc2_bias is not None
    return whole and native_call_applies("mlp", x, tensors) and _misfit(x, added, weights) is None


def mlp_branch(x: Tensor, added: Tensor, weights: MlpWeights) -> Tensor:
    """Return s + fc2(GELU(fc1(norm(s)))), s = x + added.

    Where :func:`applies`, in one call, without a gradient: 64 tokens at a time or fewer, so that neither the normalised
    nor the hidden values go through memory; up to 256 tokens together, in whose hidden values the threads take columns.
    Everything is computed in float32, but for this: where the processor multiplies pairs of bfloat16 (AVX512-BF16) and
    the tensors are of it, the products take both sides rounded to it and sum in float32. Elsewhere, and where gradients
    are wanted, torch's own operations one after the other.

    Args:
        x: stream, [..., C].
        added: what the branch before adds to it, the same shape.
        weights: the branch's, of x's dtype.

    Returns:
        [..., C], of x's dtype.

    Raises:
        ShapeError: the shapes do not fit, or a tensor is not floating or on another device than x.
        ConfigError: there is no such norm.
        BackendError: the backend asked for cannot run, or there is not enough memory for its working space.
    """
    check_tensors("mlp_branch", x, *OPTIONAL, x=x, added=added, **dict(zip(NAMES, weights.tensors(), strict=True)))
    if applies(x, added, weights):
        return cpu.forward(x, added, weights)
    misfit = _misfit(x, added, weights)
    if misfit is not None:
        raise ShapeError(misfit)
    if weights.norm.kind not in NORMS:
        raise ConfigError(f"the norm of an MLP branch must be one of {', '.join(NORMS)}, got {weights.norm.kind!r}")
    return reference.forward(x, added, weights)


def _misfit(x: Tensor, added: Tensor, weights: MlpWeights) -> str | None:
    """Return what does not fit, or None. The kernel takes its sizes from few of the tensors and trusts the others."""
    if x.dim() == 0 or added.shape != x.shape:
        return (
            f"an MLP branch takes x [..., C] and added of the same shape, got {list(x.shape)} and {list(added.shape)}"
        )
    fc1: Tensor | None = weights.fc1_weight
    width, hidden = x.shape[-1], 0 if fc1 is None or fc1.dim() == 0 else fc1.shape[0]
    if width == 0 or hidden == 0:
        return f"an MLP branch needs a channel and a hidden value at least, got {width} and {hidden}"
    expected = ((width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
    for name, weight, wanted in zip(NAMES, weights.tensors(), expected, strict=True):
        if weight is None and name in OPTIONAL:
            continue
        if weight is None or weight.shape != wanted:
            found = None if weight is None else list(weight.shape)
            return f"{name} must be {list(wanted)} to fit the stream and fc1_weight, got {found}"
    return None
