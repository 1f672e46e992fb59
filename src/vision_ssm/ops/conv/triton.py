"""The causal convolution on GPUs in Triton: one pass over memory each way.

Importing this file loads triton; only :mod:`vision_ssm.ops.conv.op` does so, when a convolution first runs there.

Forward, a program is a tile of tokens and channels. The taps are loads of the same tile moved by a few tokens, which
the cache of the multiprocessor serves; the program takes all directions, so that x comes from memory once.

Backward, a program walks LINES pieces of the sequences side by side, token by token. In registers it keeps the last T
tokens and, for each direction, the gradients before the activation that reach the token whose gradient is due. So x and
the gradient are read once, and every activation is recomputed once, but for T - 1 tokens where two pieces meet. The
sums for the parameters stay in registers too. Every program writes them to memory of its own, which is summed
afterwards: nothing is added atomically, and the same call gives the same bits.
"""
# mypy: disable-error-code="assignment, var-annotated"
# ruff: noqa: RUF005
# The kernels' tuples grow while triton unrolls their loops, and triton does not unpack a tuple within another.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vision_ssm.ops.gpu import on_device_of

__all__ = ["backward", "conv_adjoint", "conv_tiles", "forward"]

ROWS, BLOCK = 32, 64  # of the forward pass: 16 elements for each lane of four warps, read in 16 bytes
LINES = 4  # pieces that a program of the backward pass walks, a warp for each: two channels for each lane
GROUP = 4  # tokens whose loads are under way at once
_GROUP: tl.constexpr = tl.constexpr(GROUP)
SHORTEST = 16  # tokens of a piece: shorter ones would repeat too much where they meet
PROGRAMS = 1024  # of the backward pass, at most: enough for every GPU, and the parts of the sums stay within megabytes


class Pieces(NamedTuple):
    """How the backward pass is cut."""

    per_image: int  # pieces that every image's tokens are cut into
    tokens: int  # of a piece; the last one of an image may have fewer
    programs: int  # for each block of channels
    turns: int  # sets of LINES pieces that every program takes one after the other


def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    """Return [B, K, L, C] with the directions outermost in memory; weight [K, C, T] and bias [K, C] in float32."""
    y = x.new_empty((len(reverse), *x.shape)).transpose(0, 1)
    if y.numel() == 0:
        return y
    batch, tokens, channels = x.shape
    grid = (batch * -(-tokens // ROWS) * -(-channels // BLOCK),)
    with on_device_of(x):
        conv_tiles[grid](
            *(x, weight.contiguous(), bias.contiguous(), y),
            *x.stride(),
            *(batch, tokens, channels),
            **_constants(weight, reverse, activation),
            ROWS=ROWS,
        )
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias for ``grad`` [B, K, L, C] of any strides."""
    directions, channels, taps = weight.shape
    dx = x.new_empty(x.shape)
    if dx.numel() == 0 or directions == 0:
        return dx.zero_(), weight.new_zeros(weight.shape), bias.new_zeros(bias.shape)
    batch, tokens, _ = x.shape
    pieces = cut(batch, tokens, channels)
    parts = x.new_empty((pieces.programs, directions, taps + 1, channels), dtype=torch.float32)
    with on_device_of(x):
        conv_adjoint[(pieces.programs * -(-channels // BLOCK),)](
            *(x, grad, weight.contiguous(), bias.contiguous(), dx, parts),
            *(*x.stride(), *grad.stride()),
            *(tokens, channels, pieces.per_image, pieces.tokens, batch * pieces.per_image),
            *(pieces.programs, pieces.turns),
            **_constants(weight, reverse, activation),
            LINES=LINES,
        )
    total = parts.sum(0)
    return dx, total[:, :taps].transpose(1, 2).contiguous(), total[:, taps].contiguous()


def cut(batch: int, tokens: int, channels: int) -> Pieces:
    """Choose pieces for the backward pass: as long as they can be with PROGRAMS programs, SHORTEST tokens at least.

    A long piece repeats little. Where images alone are more than enough lines, none is cut and a program takes several
    of them in turn, so that the parts of the sums stay few.
    """
    most = -(-PROGRAMS // -(-channels // BLOCK))
    length = -(-tokens // max(1, tokens // max(SHORTEST, -(-batch * tokens // (most * LINES)))))
    per_image = -(-tokens // length)
    sets = -(-batch * per_image // LINES)
    turns = -(-sets // most)
    return Pieces(per_image, length, -(-sets // turns), turns)


def _constants(weight: Tensor, reverse: Sequence[bool], activation: bool) -> dict[str, int | bool]:
    return {
        "K": len(reverse),
        "TAPS": weight.shape[2],
        "REVERSE": sum(backwards << k for k, backwards in enumerate(reverse)),
        "ACTIVATION": activation,
        "BLOCK": BLOCK,
        "num_warps": 4,
        "enable_fp_fusion": True,  # triton 3.9 warns where it is left to the default
    }


@triton.jit
def _load(at, token, stride, inside, here):
    """Load [tokens, BLOCK] in float32, zeros outside."""
    return tl.load(at + token[:, None] * stride, mask=inside[:, None] & here[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["batch", "tokens"])
def conv_tiles(
    x, weight, bias, y, x_b, x_l, x_c, batch, tokens, channels,
    K: tl.constexpr, TAPS: tl.constexpr, REVERSE: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write y [K, B, L, C]. REVERSE has a bit for each direction that looks towards the end of the sequence."""
    blocks, tiles = tl.cdiv(channels, BLOCK), tl.cdiv(tokens, ROWS)
    place = (tl.program_id(0) // blocks).to(tl.int64)
    image = place // tiles
    row = place % tiles * ROWS + tl.arange(0, ROWS)
    channel = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    here = channel < channels
    x_at = x + image * x_b + channel[None, :] * x_c
    y_at = y + (image * tokens + row)[:, None] * channels + channel[None, :]
    plane = batch.to(tl.int64) * tokens * channels
    for k in tl.static_range(K):
        own = k * channels + channel
        total = tl.zeros([ROWS, BLOCK], tl.float32) + tl.load(bias + own, mask=here, other=0.0)[None, :]
        for tap in tl.static_range(TAPS):
            # Tap j reaches TAPS - 1 - j tokens back; going backwards it reaches as far ahead.
            token = row + (TAPS - 1 - tap) * (2 * (REVERSE >> k & 1) - 1)
            factor = tl.load(weight + own * TAPS + tap, mask=here, other=0.0)
            total += factor[None, :] * _load(x_at, token, x_l, (token >= 0) & (token < tokens), here)
        if ACTIVATION:
            total = total / (1.0 + tl.exp(-total))
        tl.store(y_at + k * plane, total, mask=(row < tokens)[:, None] & here[None, :])


@triton.jit(do_not_specialize=["tokens", "per_image", "length", "lines", "programs", "turns"])
def conv_adjoint(
    x, grad, weight, bias, dx, parts, x_b, x_l, x_c, grad_b, grad_k, grad_l, grad_c,
    tokens, channels, per_image, length, lines, programs, turns,
    K: tl.constexpr, TAPS: tl.constexpr, REVERSE: tl.constexpr, ACTIVATION: tl.constexpr,
    LINES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write dx [B, L, C] and the program's share of the parameters' gradients, parts [programs, K, T + 1, C].

    With the window x[t .. t + T - 1] at hand, the gradient before the activation is found at t + T - 1 for a direction
    that looks back and at t for one that looks ahead; then all that reach t have been.
    """
    blocks = tl.cdiv(channels, BLOCK)
    program = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    here = channel < channels
    none = tl.zeros([LINES, BLOCK], tl.float32)
    factors, shifts, sums = (), (), ()
    for k in tl.static_range(K):
        own = k * channels + channel
        shifts = shifts + (tl.load(bias + own, mask=here, other=0.0)[None, :],)
        for tap in tl.static_range(TAPS):
            factors = factors + (tl.load(weight + own * TAPS + tap, mask=here, other=0.0)[None, :],)
        for _sum in tl.static_range(TAPS + 1):
            sums = sums + (none,)
    for turn in range(turns):
        line = (program + turn * programs) * LINES + tl.arange(0, LINES)
        image = line // per_image
        first = line % per_image * length
        # A line that is not there has no tokens.
        count = tl.where(line < lines, tokens, 0)
        end = tl.minimum(first + length, count)
        stop = tl.minimum(end + TAPS - 1, count)
        x_at = x + image[:, None] * x_b + channel[None, :] * x_c
        grad_at = grad + image[:, None] * grad_b + channel[None, :] * grad_c
        dx_at = dx + image[:, None] * tokens * channels + channel[None, :]
        # The oldest of T is about to leave: each step drops it and appends the newest.
        window, reaching = (none,), ()
        for back in tl.static_range(TAPS - 1):
            before = first - (TAPS - 1) + back
            window = window + (_load(x_at, before, x_l, (before >= 0) & (before < count), here),)
        for _kept in tl.static_range(K * TAPS):
            reaching = reaching + (none,)
        for step in range(0, length + TAPS - 1, _GROUP):
            fresh, outer = (), ()
            for i in tl.static_range(_GROUP):
                newest = first + step + i
                token = newest - (TAPS - 1)
                fresh = fresh + (_load(x_at, newest, x_l, newest < stop, here),)
                for k in tl.static_range(K):
                    at = grad_at + tl.full([1, 1], k, tl.int64) * grad_k
                    if REVERSE >> k & 1:
                        outer = outer + (_load(at, token, grad_l, (token >= 0) & (token < end), here),)
                    else:
                        outer = outer + (_load(at, newest, grad_l, newest < stop, here),)
            for i in tl.static_range(_GROUP):
                newest = first + step + i
                token = newest - (TAPS - 1)
                mine = (token >= first) & (token < end)
                moved = ()
                for tap in tl.static_range(1, TAPS):
                    moved = moved + (window[tap],)
                window = moved + (fresh[i],)
                kept, summed = (), ()
                total = none
                for k in tl.static_range(K):
                    slope = outer[i * K + k]
                    if ACTIVATION:
                        a = none + shifts[k]
                        for tap in tl.static_range(TAPS):
                            a += factors[k * TAPS + tap] * window[TAPS - 1 - tap if REVERSE >> k & 1 else tap]
                        gate = 1.0 / (1.0 + tl.exp(-a))
                        slope = slope * gate * (1.0 + a * (1.0 - gate))
                    # The parameters' sums leave out what another piece counts.
                    counted = mine if REVERSE >> k & 1 else newest < end
                    counts = tl.where(counted[:, None], slope, 0.0)
                    for tap in tl.static_range(TAPS):
                        seen = window[TAPS - 1 - tap if REVERSE >> k & 1 else tap]
                        summed = summed + (sums[k * (TAPS + 1) + tap] + counts * seen,)
                    summed = summed + (sums[k * (TAPS + 1) + TAPS] + counts,)
                    for tap in tl.static_range(1, TAPS):
                        kept = kept + (reaching[k * TAPS + tap],)
                    kept = kept + (slope,)
                    for tap in tl.static_range(TAPS):
                        reached = kept[k * TAPS + (tap if REVERSE >> k & 1 else TAPS - 1 - tap)]
                        total += factors[k * TAPS + tap] * reached
                reaching, sums = kept, summed
                tl.store(dx_at + token[:, None] * channels, total, mask=mine[:, None] & here[None, :])
    for k in tl.static_range(K):
        for tap in tl.static_range(TAPS + 1):
            at = parts + ((program * K + k) * (TAPS + 1) + tap) * channels + channel
            tl.store(at, tl.sum(sums[k * (TAPS + 1) + tap], axis=0), mask=here)
