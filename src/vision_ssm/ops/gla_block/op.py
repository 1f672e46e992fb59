"""A block of gated linear attention from the residual stream and back to it, in one call on the CPU.

    l = DWConv3x3(norm(x)), SiLU of it if asked for              x [B, H, W, C], l [B, L, C]
    q, k, v = W_qkv l                                            [B, L, C/2], [B, L, C/2], [B, L, C]
    log α = logsigmoid(W_up W_down l + b) / 16                   of both directions, [B, L, C/2] each
    a = scale · gla(q, k, v, log α)                              summed over the directions, see ops/gla/op.py
    g = sigmoid(W_g l + b_g)
    m = g ⊙ norm_g(a) + (1 - g) ⊙ norm_l(l), SiLU of it if asked for     norms per head
    s = x + W_o m
    gla_block(x) = s + W_2 (SiLU(c) ⊙ d),   (c, d) = W_1 norm2(s)

Source: ViG, arXiv:2405.18425; as modules it is layers/gla_block.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.ops.dispatch import native_call_applies
from vision_ssm.ops.gate import check_tensors, show
from vision_ssm.ops.gla_block import cpu, reference
from vision_ssm.ops.gla_block.contract import NAMES, OPTIONAL, GlaBlock
from vision_ssm.ops.native import are_plain

__all__ = ["applies", "gla_block", "takes_map"]


def applies(x: Tensor, block: GlaBlock) -> bool:
    """Tell whether :func:`gla_block` takes one call: same result, less memory and time.

    It does where :func:`vision_ssm.ops.dispatch.native_call_applies` to the weights, which are of one dtype, x is plain
    and of theirs or float32, no gradient of it is wanted, and the shapes fit.
    """
    weights = [w for w in block.tensors() if w is not None]
    return takes_map(x, weights) and block.norms_fit() and block.misfit(x.shape[3]) is None


def takes_map(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Tell whether a map x [B, H, W, C] may be taken in one call by a block with these weights, shapes aside."""
    dtype = weights[0].dtype
    if x.dim() != 4 or x.numel() == 0 or x.dtype not in (torch.float32, dtype) or not are_plain((x,), x.dtype):
        return False
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return native_call_applies("gla_block", weights[0], weights)


def gla_block(x: Tensor, block: GlaBlock) -> Tensor:
    """Return the map after a block.

    Where :func:`applies`, in one call, without a gradient: at most 64 tokens at a time, so that what lies between the
    products stays in the caches; whole maps are held of the local path, queries, keys, values and gates, and of what is
    attended, five times x's size in float32. Everything is computed in float32, but for this: where the processor
    multiplies pairs of bfloat16 (AVX512-BF16) and the weights are of it, the products take both sides rounded to it and
    sum in float32. Elsewhere, and where gradients are wanted, torch's own operations one after the other.

    Args:
        x: map, [B, H, W, C].
        block: weights and form.

    Returns:
        [B, H, W, C], of x's dtype.

    Raises:
        ShapeError: a weight does not fit, or a tensor is not floating or on another device than x.
        ConfigError: there is no such norm.
        BackendError: the backend asked for cannot run, or there is not enough memory for its working space.
    """
    check_tensors("gla_block", x, *OPTIONAL, x=x, **dict(zip(NAMES, block.tensors(), strict=True)))
    if applies(x, block):
        return cpu.forward(x, block)
    if x.dim() != 4 or x.shape[3] == 0:
        raise ShapeError(
            f"a block of gated linear attention takes a map [B, H, W, C] of a channel at least, got {show(x.shape)}"
        )
    misfit = block.misfit(x.shape[3])
    if misfit is not None:
        raise ShapeError(misfit)
    if not block.norms_fit():
        kinds = [norm.kind for norm in (block.norm, block.norm2, block.g_norm, block.l_norm)]
        raise ConfigError(
            "a block of gated linear attention takes norm and norm2 of the kinds rms and layer, and g_norm and l_norm "
            f"of the kind rms without a bias, got {kinds}"
        )
    return reference.forward(x, block)
