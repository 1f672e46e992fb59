"""The backward scan in Triton: chunks from the last to the first, each recomputed from the state the forward saved.

A program is one warp. Its state is a tile [N / 4, BLOCK / 8, 4, 8] of states and channels, of which the last two axes
lie across the lanes and the others in each lane: sums over channels (gradients of B and C) and over states (those of u
and delta) then both begin within a lane and end with two or three exchanges. With a channel to each lane, as in the
forward pass, the sums over channels alone would take more time than the exponentials.

Going backwards a step needs the state before it. A chunk is first walked forward, keeping the state before every
GROUP-th step in memory of the program's own, which is small enough to stay in the cache; then each group is walked
forward once more, its few states kept in registers, and back. A step so takes less than three exponentials per state
and no state of every step is ever stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vision_ssm.ops.scan.contract import CHUNK
from vision_ssm.ops.scan.triton_parts import WORDS_, softplus_of, steps_of

__all__ = ["GROUP", "adjoint_ends", "scan_adjoint"]

GROUP = 4
_GROUPS: tl.constexpr = tl.constexpr(CHUNK // GROUP)  # of a full chunk


@triton.jit(do_not_specialize=["segments", "segment_chunks", "one"])
def adjoint_ends(
    delta, c, z, grad, a, bias, walks, tails, sums,
    delta_b, delta_k, delta_l, delta_c, c_b, c_k, c_l, c_n, z_b, z_l, z_c, grad_b, grad_k, grad_l, grad_c,
    directions, channels, segments, segment_chunks, one,
    STATES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Write the adjoint that leaves each segment at its start if none enters at its end, and its sum of delta.

    ``tails`` [B, K, segments, N, C], ``sums`` [B, K, segments, C]. The tile is the forward's, a channel to each lane.
    """
    blocks = tl.cdiv(channels, BLOCK)
    segment = tl.program_id(0) // blocks % segments
    line = (tl.program_id(0) // blocks // segments).to(tl.int64)
    batch, k = line // directions, line % directions
    lane = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    channel = lane.to(tl.int64)
    state = tl.arange(0, PADDED)
    here, there = channel < channels, state < STATES
    inside = there[:, None] & here[None, :]
    own = k * channels + channel
    rates = tl.load(a + own[None, :] * STATES + state[:, None] * one, mask=inside, other=0.0) * 1.4426950408889634
    shift = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        shift = tl.load(bias + own, mask=here, other=0.0)
    delta_at = delta + batch * delta_b + k * delta_k + channel * delta_c
    grad_at = grad + batch * grad_b + k * grad_k + channel * grad_c
    c_at = c + batch * c_b + k * c_k + state * c_n
    z_at = z
    if z is not None:
        z_at = z + batch * z_b + channel * z_c
    row = walks + k * WORDS_
    inner_count = tl.load(row + 4)
    start, inner_stride, outer_stride = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    to_start, to_inner, to_outer = tl.load(row + 8), tl.load(row + 9), tl.load(row + 10)
    first = segment * segment_chunks
    last = tl.minimum(first + segment_chunks, tl.load(row + 1))
    step = steps_of(row, last - 1)[1] - 1
    outer = step // inner_count
    inner = step - outer * inner_count
    carried = tl.zeros([PADDED, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(first, last):
        begin, end, anew = steps_of(row, first + last - 1 - turn)
        for _back in range(begin, end):
            token = (start + outer * outer_stride + inner * inner_stride).to(tl.int64)
            to = (to_start + outer * to_outer + inner * to_inner).to(tl.int64)
            wraps = inner == 0
            outer -= wraps.to(tl.int32)
            inner = tl.where(wraps, inner_count, inner) - 1
            step_size = tl.load(delta_at + token * delta_l, mask=here, other=0.0).to(tl.float32) + shift
            out = tl.load(grad_at + to * grad_l, mask=here, other=0.0).to(tl.float32)
            c_now = tl.load(c_at + token * c_l, mask=there, other=0.0).to(tl.float32)
            if z is not None:
                gate = tl.load(z_at + to * z_l, mask=here, other=0.0).to(tl.float32)
                out *= gate / (1.0 + tl.exp(-gate))
            if SOFTPLUS:
                step_size = softplus_of(step_size)[0]
            carried = tl.exp2(step_size[None, :] * rates) * (carried + out[None, :] * c_now[:, None])
            total += step_size
        carried = tl.where(anew, 0.0, carried)
    tile = state[:, None] * channels + lane[None, :] * one
    tl.store(tails + (line * segments + segment) * STATES * channels + tile, carried, mask=inside)
    tl.store(sums + (line * segments + segment) * channels + channel, total, mask=here)


@triton.jit
def _over_channels(x):
    """Sum a tile over its channels, first within lanes: [N / 4, 4]."""
    return tl.sum(tl.sum(x, axis=1), axis=2)


@triton.jit
def _over_states(x):
    """Sum a tile over its states, first within lanes: [BLOCK / 8, 8]."""
    return tl.sum(tl.sum(x, axis=0), axis=1)


@triton.jit
def _inputs(u_at, delta_at, b_at, token, u_l, delta_l, b_l, shift, here, there, SOFTPLUS: tl.constexpr):
    """Return u, the step size and its slope, and B of the step at ``token``; a step that is masked changes nothing."""
    token = token.to(tl.int64)
    x = tl.load(u_at + token * u_l, mask=here, other=0.0).to(tl.float32)
    raw = tl.load(delta_at + token * delta_l, mask=here, other=0.0).to(tl.float32) + shift
    b = tl.load(b_at + token * b_l, mask=there, other=0.0).to(tl.float32)
    step_size, slope = raw, tl.full(raw.shape, 1.0, tl.float32)
    if SOFTPLUS:
        step_size, e = softplus_of(raw)
        slope = tl.where(raw >= 0.0, 1.0, e) / (1.0 + e)
    return x, tl.where(here, step_size, 0.0), tl.where(here, slope, 0.0), b


@triton.jit
def _after(h, u_at, delta_at, b_at, token, u_l, delta_l, b_l, shift, rates, here, there, SOFTPLUS: tl.constexpr):
    """Return the state after the step at ``token``."""
    x, step_size, _slope, b = _inputs(u_at, delta_at, b_at, token, u_l, delta_l, b_l, shift, here, there, SOFTPLUS)
    decay = tl.exp2(step_size[None, :, None, :] * rates)
    return decay * h + (step_size * x)[None, :, None, :] * b[:, None, :, None]


@triton.jit
def _following(inner, outer, inner_count):
    """Return (inner, outer) of the next step."""
    wraps = inner + 1 == inner_count
    return tl.where(wraps, 0, inner + 1), outer + wraps.to(tl.int32)


@triton.jit
def _fill(
    kept, h, row, begin, groups, u_at, delta_at, b_at, u_l, delta_l, b_l, shift, rates, here, there,
    SOFTPLUS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Walk a chunk forward from its first state h, keeping the state before each group; the last is not walked."""
    inner_count = tl.load(row + 4)
    start, inner_stride, outer_stride = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    outer = begin // inner_count
    inner = begin - outer * inner_count
    tl.store(kept, h)
    for group in range(1, groups):
        for _turn in tl.static_range(4):
            token = start + outer * outer_stride + inner * inner_stride
            h = _after(h, u_at, delta_at, b_at, token, u_l, delta_l, b_l, shift, rates, here, there, SOFTPLUS)
            inner, outer = _following(inner, outer, inner_count)
        tl.store(kept + group * SIZE, h)


@triton.jit
def _back(
    before, carried, da, dskip, dbias, token, to, channel, channels, state, states, more,
    u_at, delta_at, b_at, c_at, z_at, grad_at, du_at, ddelta_at, dz_at, db_at, dc_at,
    u_l, delta_l, b_l, c_l, z_l, grad_l, du_l, ddelta_l, dz_l, shift, passed, rates,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Take one step back: write its gradients; return the adjoint before it and the sums of the parameters' gradients.

    ``carried`` is dL/dh after the step, through all later ones. With ``more`` the gradients of B and C are added to
    those of the channels before. The formulas are those of ``reference``.
    """
    here, there = channel < channels, state < states
    token, to = token.to(tl.int64), to.to(tl.int64)
    x, step_size, slope, b = _inputs(u_at, delta_at, b_at, token, u_l, delta_l, b_l, shift, here, there, SOFTPLUS)
    c = tl.load(c_at + token * c_l, mask=there, other=0.0).to(tl.float32)
    out = tl.load(grad_at + to * grad_l, mask=here, other=0.0).to(tl.float32)
    decay = tl.exp2(step_size[None, :, None, :] * rates)
    after = decay * before + (step_size * x)[None, :, None, :] * b[:, None, :, None]
    if z_at is not None:
        gate = tl.load(z_at + to * z_l, mask=here, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        y = _over_states(after * c[:, None, :, None]) + passed * x
        tl.store(dz_at + to * dz_l, out * y * sigmoid * (1.0 + gate * (1.0 - sigmoid)), mask=here)
        out *= gate * sigmoid
    adjoint = carried + out[None, :, None, :] * c[:, None, :, None]
    dc = _over_channels(out[None, :, None, :] * after)
    db = _over_channels((step_size * x)[None, :, None, :] * adjoint)
    old = state < tl.where(more, states, 0)
    tl.store(db_at + token * STATES, tl.load(db_at + token * STATES, mask=old, other=0.0) + db, mask=there)
    tl.store(dc_at + token * STATES, tl.load(dc_at + token * STATES, mask=old, other=0.0) + dc, mask=there)
    through_input = _over_states(adjoint * b[:, None, :, None])
    carried = decay * adjoint
    through_decay = carried * before
    ddelta = slope * (_over_states(through_decay * rates) * 0.6931471805599453 + x * through_input)
    tl.store(ddelta_at + token * ddelta_l, ddelta, mask=here)
    tl.store(du_at + token * du_l, step_size * through_input + passed * out, mask=here)
    return carried, da + through_decay * step_size[None, :, None, :], dskip + out * x, dbias + ddelta


@triton.jit
def _chunk(
    kept, head, carried, da, dskip, dbias, row, begin, end, channel, channels, state, more,
    u_at, delta_at, b_at, c_at, z_at, grad_at, du_at, ddelta_at, dz_at, db_at, dc_at,
    u_l, delta_l, b_l, c_l, z_l, grad_l, du_l, ddelta_l, dz_l, shift, passed, rates,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Take the steps of a chunk back, from the last group to the first; arguments and result as for ``_back``."""
    inner_count = tl.load(row + 4)
    start, inner_stride, outer_stride = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    to_start, to_inner, to_outer = tl.load(row + 8), tl.load(row + 9), tl.load(row + 10)
    groups = (end - begin + 3) // 4
    tl.debug_barrier()  # what was kept of the chunk before has been read
    _fill(
        kept, head, row, begin, groups, u_at, delta_at, b_at, u_l, delta_l, b_l, shift, rates,
        channel < channels, state < STATES, SOFTPLUS, SIZE,
    )  # fmt: skip
    tl.debug_barrier()
    for turn in range(groups):
        group = groups - 1 - turn
        step = begin + group * 4
        outer = step // inner_count
        inner = step - outer * inner_count
        before0 = tl.load(kept + group * SIZE)
        before1, before2, before3 = before0, before0, before0
        next_inner, next_outer = inner, outer
        # The states before the group's steps. A step beyond the chunk's end is masked through the bounds.
        for number in tl.static_range(3):
            token = start + next_outer * outer_stride + next_inner * inner_stride
            some = step + number < end
            here, there = channel < tl.where(some, channels, 0), state < tl.where(some, STATES, 0)
            before3 = _after(
                before3, u_at, delta_at, b_at, token, u_l, delta_l, b_l, shift, rates, here, there, SOFTPLUS
            )
            if number == 0:
                before1 = before3
            if number == 1:
                before2 = before3
            next_inner, next_outer = _following(next_inner, next_outer, inner_count)
        for back in tl.static_range(4):
            before = before3
            if back == 1:
                before = before2
            if back == 2:
                before = before1
            if back == 3:
                before = before0
            next_inner, next_outer = inner, outer
            for _ahead in tl.static_range(3 - back):
                next_inner, next_outer = _following(next_inner, next_outer, inner_count)
            some = step + 3 - back < end
            carried, da, dskip, dbias = _back(
                before, carried, da, dskip, dbias,
                start + next_outer * outer_stride + next_inner * inner_stride,
                to_start + next_outer * to_outer + next_inner * to_inner,
                channel, tl.where(some, channels, 0), state, tl.where(some, STATES, 0), more,
                u_at, delta_at, b_at, c_at, z_at, grad_at, du_at, ddelta_at, dz_at, db_at, dc_at,
                u_l, delta_l, b_l, c_l, z_l, grad_l, du_l, ddelta_l, dz_l, shift, passed, rates, STATES, SOFTPLUS,
            )  # fmt: skip
    return carried, da, dskip, dbias


@triton.jit(do_not_specialize=["longest", "segments", "segment_chunks", "groups", "tasks", "one"])
def scan_adjoint(
    u, delta, b, c, z, grad, a, skip, bias, walks, saved, tails, scratch,
    du, ddelta, dz, db, dc, da, dskip, dbias,
    u_b, u_k, u_l, u_c, delta_b, delta_k, delta_l, delta_c, b_b, b_k, b_l, b_n, c_b, c_k, c_l, c_n,
    z_b, z_l, z_c, grad_b, grad_k, grad_l, grad_c,
    du_b, du_k, du_l, ddelta_b, ddelta_k, ddelta_l, dz_b, dz_k, dz_l, db_g, db_b, db_k, dc_g, dc_b, dc_k,
    directions, channels, longest, segments, segment_chunks, groups, tasks, one,
    STATES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of u, delta and z, and each program's share of those of B, C and the parameters.

    A task is one segment of one direction of one image and every ``groups``-th block of its channels; a program takes
    every so many of the ``tasks``. ``db, dc`` [groups, B, K|1, L, N]; ``da`` [B, segments, K, C, N]; ``dskip, dbias``
    [B, segments, K, C]; ``tails`` as :func:`adjoint_ends` and the linking leave them, or None for nothing.
    ``scratch`` holds the states before a chunk's groups, [programs, CHUNK / GROUP, N, BLOCK].
    """
    NEAR: tl.constexpr = PADDED if PADDED < 4 else 4
    SIZE: tl.constexpr = PADDED * BLOCK
    blocks = tl.cdiv(channels, BLOCK)
    state = tl.arange(0, PADDED // NEAR)[:, None] * NEAR + tl.arange(0, NEAR)[None, :]
    of_block = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    there = state < STATES
    kept = scratch + tl.program_id(0).to(tl.int64) * _GROUPS * SIZE
    register = tl.arange(0, PADDED // NEAR)[:, None] * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    of_warp = tl.arange(0, NEAR)[:, None] * 8 + tl.arange(0, 8)[None, :]
    kept += register[:, :, None, None] * (8 * NEAR) + of_warp[None, None, :, :] * one
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        group = task % groups
        segment = task // groups % segments
        line = (task // groups // segments).to(tl.int64)
        batch, k = line // directions, line % directions
        row = walks + k * WORDS_
        first = segment * segment_chunks
        last = tl.minimum(first + segment_chunks, tl.load(row + 1))
        b_at, c_at = b + batch * b_b + k * b_k + state * b_n, c + batch * c_b + k * c_k + state * c_n
        db_at = db + group * db_g + batch * db_b + k * db_k + state
        dc_at = dc + group * dc_g + batch * dc_b + k * dc_k + state
        for block in range(group, blocks, groups):
            lane = block * BLOCK + of_block
            channel = lane.to(tl.int64)
            here = channel < channels
            inside = there[:, None, :, None] & here[None, :, None, :]
            own = k * channels + channel
            parameters = own[None, :, None, :] * STATES + state[:, None, :, None] * one
            rates = tl.load(a + parameters, mask=inside, other=0.0) * 1.4426950408889634
            shift, passed = tl.zeros(of_block.shape, tl.float32), tl.zeros(of_block.shape, tl.float32)
            if bias is not None:
                shift = tl.load(bias + own, mask=here, other=0.0)
            if skip is not None:
                passed = tl.load(skip + own, mask=here, other=0.0)
            tile = state[:, None, :, None] * channels + lane[None, :, None, :] * one
            carried = tl.zeros(rates.shape, tl.float32)
            if tails is not None:
                entering = tails + (line * segments + segment) * STATES * channels
                carried = tl.load(entering + tile, mask=inside, other=0.0)
            sum_a = tl.zeros(rates.shape, tl.float32)
            sum_skip, sum_bias = tl.zeros(of_block.shape, tl.float32), tl.zeros(of_block.shape, tl.float32)
            u_at = u + batch * u_b + k * u_k + channel * u_c
            delta_at = delta + batch * delta_b + k * delta_k + channel * delta_c
            grad_at = grad + batch * grad_b + k * grad_k + channel * grad_c
            du_at = du + batch * du_b + k * du_k + channel
            ddelta_at = ddelta + batch * ddelta_b + k * ddelta_k + channel
            z_at, dz_at = z, dz
            if z is not None:
                z_at = z + batch * z_b + channel * z_c
                dz_at = dz + batch * dz_b + k * dz_k + channel
            for turn in range(first, last):
                chunk = first + last - 1 - turn
                begin, end, anew = steps_of(row, chunk)
                head = tl.load(saved + (line * longest + chunk) * STATES * channels + tile, mask=inside, other=0.0)
                carried, sum_a, sum_skip, sum_bias = _chunk(
                    kept, head, carried, sum_a, sum_skip, sum_bias, row, begin, end, channel, channels, state,
                    block >= groups, u_at, delta_at, b_at, c_at, z_at, grad_at, du_at, ddelta_at, dz_at, db_at, dc_at,
                    u_l, delta_l, b_l, c_l, z_l, grad_l, du_l, ddelta_l, dz_l, shift, passed, rates,
                    STATES, SOFTPLUS, SIZE,
                )  # fmt: skip
                carried = tl.where(anew, 0.0, carried)
            share = (batch * segments + segment) * directions + k
            place = lane[None, :, None, :] * STATES + state[:, None, :, None] * one
            tl.store(da + share * channels * STATES + place, sum_a, mask=inside)
            tl.store(dskip + share * channels + lane, sum_skip, mask=here)
            tl.store(dbias + share * channels + lane, sum_bias, mask=here)
            tl.debug_barrier()  # the next block of channels adds to the gradients of B and C
