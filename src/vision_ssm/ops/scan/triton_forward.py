"""The forward scan in Triton: one program walks one segment of one direction of one image for a block of channels.

The state is a tile [N, BLOCK] with a channel to each lane, so that a lane holds all states of its channel: reading out
C.h needs no exchange between lanes, and B and C are the same for all of them. The inputs of a step are loaded one step
ahead, since their address does not depend on the state and a step takes less than a load's latency.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vision_ssm.ops.scan.triton_parts import WORDS_, softplus_of, steps_of

__all__ = ["scan_segments"]


@triton.jit
def _fetch(u_at, delta_at, b_at, c_at, z_at, token, to, u_l, delta_l, b_l, c_l, z_l, here, there, OUTPUT: tl.constexpr):
    """Load what a step takes that reads at ``token`` and writes at ``to``, in the inputs' dtype."""
    token, to = token.to(tl.int64), to.to(tl.int64)
    u = tl.load(u_at + token * u_l, mask=here, other=0.0)
    delta = tl.load(delta_at + token * delta_l, mask=here, other=0.0)
    b = tl.load(b_at + token * b_l, mask=there, other=0.0)
    c, z = b, u
    if OUTPUT:
        c = tl.load(c_at + token * c_l, mask=there, other=0.0)
        if z_at is not None:
            z = tl.load(z_at + to * z_l, mask=here, other=0.0)
    return u, delta, b, c, z


@triton.jit(do_not_specialize=["longest", "segments", "segment_chunks", "one"])
def scan_segments(
    u, delta, b, c, z, a, skip, bias, walks, y, saved, heads, sums,
    u_b, u_k, u_l, u_c, delta_b, delta_k, delta_l, delta_c, b_b, b_k, b_l, b_n, c_b, c_k, c_l, c_n,
    z_b, z_l, z_c, y_b, y_k, y_l,
    directions, channels, longest, segments, segment_chunks, one,
    STATES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """Scan a segment; with OUTPUT from ``heads`` (nothing if None) to y and ``saved``, else to ``heads`` and ``sums``.

    ``heads`` [B, K, segments, N, C] are the segments' first states, or without OUTPUT their last ones if they start
    from nothing; ``sums`` [B, K, segments, C] of delta. ``saved`` [B, K, longest, N, C] or None takes the chunks'
    first states. y has a contiguous last axis; its other strides, like those of the inputs, are given.
    """
    blocks = tl.cdiv(channels, BLOCK)
    block = tl.program_id(0) % blocks
    segment = tl.program_id(0) // blocks % segments
    line = (tl.program_id(0) // blocks // segments).to(tl.int64)
    batch, k = line // directions, line % directions
    lane = block * BLOCK + tl.arange(0, BLOCK)
    channel = lane.to(tl.int64)
    state = tl.arange(0, PADDED)
    here, there = channel < channels, state < STATES
    inside = there[:, None] & here[None, :]
    own = k * channels + channel
    rates = tl.load(a + own[None, :] * STATES + state[:, None] * one, mask=inside, other=0.0) * 1.4426950408889634
    shift = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        shift = tl.load(bias + own, mask=here, other=0.0)
    passed = tl.zeros([BLOCK], tl.float32)
    if skip is not None:
        passed = tl.load(skip + own, mask=here, other=0.0)
    u_at = u + batch * u_b + k * u_k + channel * u_c
    delta_at = delta + batch * delta_b + k * delta_k + channel * delta_c
    b_at, c_at = b + batch * b_b + k * b_k + state * b_n, c + batch * c_b + k * c_k + state * c_n
    z_at = z
    if z is not None:
        z_at = z + batch * z_b + channel * z_c
    y_at = y + batch * y_b + k * y_k + channel
    row = walks + k * WORDS_
    # Kept in registers: a load inside the loop would be repeated at every step, as the stores might change it.
    inner_count = tl.load(row + 4)
    start, inner_stride, outer_stride = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    to_start, to_inner, to_outer = tl.load(row + 8), tl.load(row + 9), tl.load(row + 10)
    first = segment * segment_chunks
    last = tl.minimum(first + segment_chunks, tl.load(row + 1))
    step = steps_of(row, first)[0]
    stop = steps_of(row, last - 1)[1]
    outer = step // inner_count
    inner = step - outer * inner_count
    token = start + outer * outer_stride + inner * inner_stride
    to = to_start + outer * to_outer + inner * to_inner
    # A step that is not there is masked through the bounds.
    channels_here, states_here = tl.where(first < last, channels, 0), tl.where(first < last, STATES, 0)
    u_next, delta_next, b_next, c_next, z_next = _fetch(
        u_at,
        delta_at,
        b_at,
        c_at,
        z_at,
        token,
        to,
        u_l,
        delta_l,
        b_l,
        c_l,
        z_l,
        channel < channels_here,
        state < states_here,
        OUTPUT,
    )
    h = tl.zeros([PADDED, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    tile = state[:, None] * channels + lane[None, :] * one  # of the states of one chunk: 32 bits are enough
    if OUTPUT and heads is not None:
        h = tl.load(heads + (line * segments + segment) * STATES * channels + tile, mask=inside, other=0.0)
    for chunk in range(first, last):
        begin, end, anew = steps_of(row, chunk)
        h = tl.where(anew, 0.0, h)
        total = tl.where(anew, 0.0, total)
        if saved is not None:
            tl.store(saved + (line * longest + chunk) * STATES * channels + tile, h, mask=inside)
        for now in range(begin, end):
            x, step_size = u_next.to(tl.float32), delta_next.to(tl.float32) + shift
            b_now, c_now, gate, target = b_next.to(tl.float32), c_next.to(tl.float32), z_next.to(tl.float32), to
            wraps = inner + 1 == inner_count
            outer += wraps.to(tl.int32)
            inner = tl.where(wraps, 0, inner + 1)
            token = start + outer * outer_stride + inner * inner_stride
            to = to_start + outer * to_outer + inner * to_inner
            more = now + 1 < stop
            channels_here, states_here = tl.where(more, channels, 0), tl.where(more, STATES, 0)
            u_next, delta_next, b_next, c_next, z_next = _fetch(
                u_at,
                delta_at,
                b_at,
                c_at,
                z_at,
                token,
                to,
                u_l,
                delta_l,
                b_l,
                c_l,
                z_l,
                channel < channels_here,
                state < states_here,
                OUTPUT,
            )
            if SOFTPLUS:
                step_size = softplus_of(step_size)[0]
            h = tl.exp2(step_size[None, :] * rates) * h + (step_size * x)[None, :] * b_now[:, None]
            if OUTPUT:
                value = tl.sum(h * c_now[:, None], axis=0) + passed * x
                if z is not None:
                    value *= gate / (1.0 + tl.exp(-gate))
                tl.store(y_at + target.to(tl.int64) * y_l, value, mask=here)
            else:
                total += step_size
    if not OUTPUT:
        tl.store(heads + (line * segments + segment) * STATES * channels + tile, h, mask=inside)
        tl.store(sums + (line * segments + segment) * channels + channel, total, mask=here)
