"""The residual addition and the norm that follows it in Triton, one pass over the stream each way.

Importing this file loads triton; only :mod:`vision_ssm.ops.add_norm.op` does so, when its operator first runs.

A program holds whole rows, so that a mean takes no second pass. The backward kernel computes the statistics anew from
the stream, which it reads anyhow. Nothing is added atomically: the same call gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vision_ssm.ops.gpu import on_device_of, processors

__all__ = ["add_norm_adjoint", "add_norm_rows", "backward", "forward", "launch_shape"]

PER_WARP = 256  # elements of a tile; with twice as many the backward kernel needs over 128 registers
MOST_ROWS = 16
LEAST_BLOCK = 16
WARPS_HELD = 16  # per processor by the backward pass, each group of four with partial sums of its own; all can be there


@triton.jit
def _centred(x, inside, channels, eps, CENTRED: tl.constexpr):
    """Return rows x less their means, if the norm takes them off, and one over their deviations."""
    if CENTRED:
        x = tl.where(inside, x - (tl.sum(x, axis=1) / channels)[:, None], 0.0)
    return x, 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / channels + eps)


@triton.jit(do_not_specialize=["rows"])
def add_norm_rows(
    x, added, scale, shift, stream, normalised, x_l, added_l, rows, channels, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """Write ``stream`` = x + added and ``normalised``, both [rows, C] and contiguous; x and added in strides of rows.

    What is normalised is the sum as it is stored, rounded to the stream's dtype. ``scale`` and ``shift`` are the norm's
    weight and bias, the second may be None.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    here = channel < channels
    inside = (row < rows)[:, None] & here[None, :]
    total = tl.load(x + row[:, None] * x_l + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    total += tl.load(added + row[:, None] * added_l + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    stored = total.to(stream.dtype.element_ty)
    at = row[:, None] * channels + channel[None, :]
    tl.store(stream + at, stored, mask=inside)
    centred, per_deviation = _centred(stored.to(tl.float32), inside, channels, eps, CENTRED)
    factor = tl.load(scale + channel, mask=here, other=0.0).to(tl.float32)
    result = centred * per_deviation[:, None] * factor[None, :]
    if shift is not None:
        result += tl.load(shift + channel, mask=here, other=0.0).to(tl.float32)[None, :]
    tl.store(normalised + at, result, mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles"])
def add_norm_adjoint(
    stream, scale, grad_stream, grad, dx, dadded, dweight, dbias, grad_stream_l, grad_l,
    rows, tiles, channels, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x [rows, C], and of added where ``dadded`` is another tensor, not None.

    ``grad`` is that of what was normalised, ``grad_stream`` that of the stream from elsewhere, or None. A program takes
    every so many of the ``tiles`` of rows and leaves its share of the parameters' gradients in its row of ``dweight``
    and ``dbias`` [programs, C], where they are not None.
    """
    channel = tl.arange(0, BLOCK)
    here = channel < channels
    factor = tl.load(scale + channel, mask=here, other=0.0).to(tl.float32)
    sum_weight, sum_bias = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tl.full([ROWS], tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & here[None, :]
        at = row[:, None] * channels + channel[None, :]
        x = tl.load(stream + at, mask=inside, other=0.0).to(tl.float32)
        out = tl.load(grad + row[:, None] * grad_l + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        centred, per_deviation = _centred(x, inside, channels, eps, CENTRED)
        # Without epsilon a row beyond the end would be 0 / 0, and in the sums.
        per_deviation = tl.where(row < rows, per_deviation, 0.0)[:, None]
        unscaled = centred * per_deviation
        scaled = out * factor[None, :]
        found = scaled - unscaled * (tl.sum(scaled * unscaled, axis=1) / channels)[:, None]
        if CENTRED:
            found -= (tl.sum(scaled, axis=1) / channels)[:, None]
        found *= per_deviation
        if grad_stream is not None:
            passed = grad_stream + row[:, None] * grad_stream_l + channel[None, :]
            found += tl.load(passed, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, found, mask=inside)
        if dadded is not None:
            tl.store(dadded + at, found, mask=inside)
        if dweight is not None:
            sum_weight += out * unscaled
        if dbias is not None:
            sum_bias += out
    own = tl.program_id(0).to(tl.int64) * channels + channel
    if dweight is not None:
        tl.store(dweight + own, tl.sum(sum_weight, axis=0), mask=here)
    if dbias is not None:
        tl.store(dbias + own, tl.sum(sum_bias, axis=0), mask=here)


def launch_shape(channels: int) -> dict[str, int]:
    """Return rows and channels of a program's tile, and its warps."""
    block = max(triton.next_power_of_2(channels), LEAST_BLOCK)
    warps = max(block // PER_WARP, 4)
    return {
        "ROWS": min(max(warps * PER_WARP // block, 1), MOST_ROWS),
        "BLOCK": block,
        "num_warps": warps,
        "enable_fp_fusion": True,  # triton 3.9 warns where it is left to the default
    }


def forward(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return (x + added, its norm times weight plus bias), contiguous; x [..., C]."""
    stream = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, added.dtype))
    normalised = x.new_empty(x.shape, dtype=weight.dtype)
    if x.numel() == 0:
        return stream, normalised
    channels = x.shape[-1]
    x, added = _rows(x), _rows(added)
    shape = launch_shape(channels)
    with on_device_of(x):
        add_norm_rows[(-(-x.shape[0] // shape["ROWS"]),)](
            *(x, added, weight.contiguous(), None if bias is None else bias.contiguous(), stream, normalised),
            *(x.stride(0), added.stride(0), x.shape[0], channels, eps),
            **shape,
            CENTRED=centred,
        )
    return stream, normalised


def backward(
    stream: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_stream: Tensor | None,
    grad: Tensor,
    eps: float,
    dtypes: tuple[torch.dtype, torch.dtype],
    *,
    centred: bool,
    parameters: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, added, weight and bias.

    ``dtypes`` are those of x and added; where they are the same the one gradient is both's, and the second is None. So
    are the last two unless the ``parameters`` want theirs.
    """
    dx = stream.new_empty(stream.shape, dtype=dtypes[0])
    dadded = None if dtypes[0] == dtypes[1] else stream.new_empty(stream.shape, dtype=dtypes[1])
    has_bias = parameters and bias is not None
    if stream.numel() == 0:
        return (
            dx,
            dadded,
            weight.new_zeros(weight.shape) if parameters else None,
            bias.new_zeros(bias.shape) if has_bias and bias is not None else None,
        )
    channels = stream.shape[-1]
    rows, shape = stream.numel() // channels, launch_shape(channels)
    tiles = -(-rows // shape["ROWS"])
    programs = min(tiles, WARPS_HELD // shape["num_warps"] * processors(stream))
    dweight = weight.new_empty((programs, channels), dtype=torch.float32) if parameters else None
    dbias = weight.new_empty((programs, channels), dtype=torch.float32) if has_bias else None
    grad, passed = _rows(grad), None if grad_stream is None else _rows(grad_stream)
    with on_device_of(stream):
        add_norm_adjoint[(programs,)](
            *(stream, weight.contiguous(), passed, grad, dx, dadded, dweight, dbias),
            *(0 if passed is None else passed.stride(0), grad.stride(0), rows, tiles, channels, eps),
            **shape,
            CENTRED=centred,
        )
    return (
        dx,
        dadded,
        None if dweight is None else dweight.sum(0).to(weight.dtype),
        None if dbias is None or bias is None else dbias.sum(0).to(bias.dtype),
    )


def _rows(x: Tensor) -> Tensor:
    """Return x [..., C] as [rows, C], neighbouring channels side by side: a copy only of maps that lie otherwise."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
