"""The Triton kernels of gated linear attention: chunks of 16 steps, matrix products inside them, forward and backward.

Importing this file loads triton; only :mod:`vision_ssm.ops.gla.triton` does so, when the operator first runs there.

A program walks one head of one direction of one image from end to end with its state in registers. In a chunk of steps
0..15, D[i] from j is the decay between token j and token i, made by multiplying gates up from j = 15 down: no
logarithms are subtracted, so that gates of any size stand side by side.

    o[i] = (q[i] ⊙ P[i])ᵀ S + sum over j <= i of A[i, j] v[j]        P[i]: decay from the chunk's start to i
    A[i, j] = sum over n of q[i] k[j] D[i] from j
    S <- diag(P[15]) S + sum over j of (k[j] ⊙ U[j]) v[j]ᵀ           U[j]: decay from j to the chunk's end
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["STEPS", "attend", "attend_adjoint"]

STEPS = 16
_STEPS: tl.constexpr = tl.constexpr(STEPS)
_WORDS: tl.constexpr = tl.constexpr(9)  # of a walk in the operator's form (ops/traversal.py)


@triton.jit
def product(a, b):
    """A product of matrices in float32, not rounded to tf32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def tokens_of(walk, chunk, per_run, run):
    """Return the tokens that a chunk's steps read and write, and which of the steps there are."""
    inner_count = tl.load(walk + 1)
    row = tl.arange(0, _STEPS)
    in_run = chunk % per_run * _STEPS + row
    step = chunk // per_run * run + in_run
    outer, inner = step // inner_count, step % inner_count
    reads = tl.load(walk) + outer * tl.load(walk + 3) + inner * tl.load(walk + 2)
    writes = tl.load(walk + 6) + outer * tl.load(walk + 8) + inner * tl.load(walk + 7)
    there = (in_run < run) & (step < tl.load(walk + 4))
    return reads.to(tl.int64), writes.to(tl.int64), there


@triton.jit
def runs_of(walk):
    """Return the chunks of a walk, the chunks of each of its runs, and a run's steps; without resets it is one run."""
    length = tl.load(walk + 4)
    run = tl.where(tl.load(walk + 5) != 0, tl.load(walk + 1), tl.maximum(length, 1))
    per_run = tl.cdiv(run, _STEPS)
    rest = length % run
    return length // run * per_run + tl.cdiv(rest, _STEPS), per_run, run


@triton.jit
def rows_at(x, tokens, stride, there, channels, width, other):
    """Load rows [STEPS, block] of x in float32; ``other`` where there is no step or channel."""
    at = x + tokens[:, None] * stride + channels[None, :]
    return tl.load(at, mask=there[:, None] & (channels < width)[None, :], other=other).to(tl.float32)


@triton.jit
def store_rows(x, tokens, stride, there, channels, width, values):
    """Store rows [STEPS, block] in x."""
    at = x + tokens[:, None] * stride + channels[None, :]
    tl.store(at, values, mask=there[:, None] & (channels < width)[None, :])


@triton.jit
def row_of(x, at):
    """Return row ``at`` of x [STEPS, block]."""
    return tl.sum(tl.where((tl.arange(0, _STEPS) == at)[:, None], x, 0.0), 0)


@triton.jit
def decay_from(decay, gates, j):
    """Turn decays from j + 1 to each step into those from j: 1 at j itself, 0 before it."""
    row = tl.arange(0, _STEPS)
    after = row_of(gates, tl.minimum(j + 1, _STEPS - 1))
    return tl.where((row > j)[:, None], decay * after[None, :], tl.where((row == j)[:, None], 1.0, 0.0))


@triton.jit
def inside(q, k, gates):
    """Return A [STEPS, STEPS] and the decays P and U [STEPS, block] of a chunk."""
    row = tl.arange(0, _STEPS)
    weights = tl.zeros((_STEPS, _STEPS), tl.float32)
    decay, to_end = tl.zeros_like(gates), tl.zeros_like(gates)
    for back in range(_STEPS):
        j = _STEPS - 1 - back
        decay = decay_from(decay, gates, j)
        column = tl.sum(q * decay * row_of(k, j)[None, :], 1)
        weights = tl.where((row == j)[None, :], column[:, None], weights)
        to_end = tl.where((row == j)[:, None], row_of(decay, _STEPS - 1)[None, :], to_end)
    return weights, decay * row_of(gates, 0)[None, :], to_end


@triton.jit(do_not_specialize=["factor"])
def attend(
    q, key, v, gates, walks, y, states, head_count, key_width, value_width, factor, most,
    q_b, q_l, k_b, k_l, v_b, v_l, gates_b, gates_k, gates_l, y_b, y_k, y_l,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, SAVE: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """Walk forwards; y is [B, K, L, H V], ``states`` [B, K, H, most, N, V] before every chunk."""
    head, direction, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n, c = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_V)
    walk = walks + direction * _WORDS
    chunks, per_run, run = runs_of(walk)
    q += image * q_b + head * key_width
    key += image * k_b + head * key_width
    v += image * v_b + head * value_width
    gates += image * gates_b + direction * gates_k + head * key_width
    y += image * y_b + direction * y_k + head * value_width
    place = (image * tl.num_programs(1) + direction) * head_count + head
    state = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for chunk in range(chunks):
        reads, writes, there = tokens_of(walk, chunk, per_run, run)
        state = tl.where(chunk % per_run == 0, 0.0, state)
        if SAVE:
            at = states + (place * most + chunk) * key_width * value_width + n[:, None] * value_width + c[None, :]
            tl.store(at, state, mask=(n < key_width)[:, None] & (c < value_width)[None, :])
        k_rows = rows_at(key, reads, k_l, there, n, key_width, 0.0)
        v_rows = rows_at(v, reads, v_l, there, c, value_width, 0.0)
        gate = tl.exp(rows_at(gates, reads, gates_l, there, n, key_width, 0.0))
        q_rows = rows_at(q, reads, q_l, there, n, key_width, 0.0) * factor
        weights, from_start, to_end = inside(q_rows, k_rows, gate)
        if OUTPUT:
            out = product(weights, v_rows) + product(q_rows * from_start, state)
            store_rows(y, writes, y_l, there, c, value_width, out)
        state = row_of(from_start, _STEPS - 1)[:, None] * state + product(tl.trans(k_rows * to_end), v_rows)


@triton.jit
def inside_adjoint(q, k, gates, dweights, dq, dk):
    """Add the gradients of q and k within a chunk, for ``dweights`` [STEPS, STEPS], those of A; return both."""
    row = tl.arange(0, _STEPS)
    decay = tl.zeros_like(gates)
    for back in range(_STEPS):
        j = _STEPS - 1 - back
        decay = decay_from(decay, gates, j)
        weight = tl.sum(tl.where((row == j)[None, :], dweights, 0.0), 1)
        weighted = weight[:, None] * decay
        dq += weighted * row_of(k, j)[None, :]
        dk = tl.where((row == j)[:, None], dk + tl.sum(weighted * q, 0)[None, :], dk)
    return dq, dk


@triton.jit(do_not_specialize=["factor"])
def attend_adjoint(
    q, key, v, gates, walks, grad, states, dq, dk, dv, dgates, head_count, key_width, value_width, factor, most,
    q_b, q_l, k_b, k_l, v_b, v_l, gates_b, gates_k, gates_l, grad_b, grad_k, grad_l, dq_k, dv_k,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Walk backwards from saved states; dq, dk and dgates are [B, K, L, H N], dv [B, K, L, H V], contiguous.

    The sum of q dq - k dk from a step to the chunk's end, and what the decay of the state behind it takes part in, is
    the gradient of that step's log-gate.
    """
    head, direction, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n, c, row = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_V), tl.arange(0, _STEPS)
    walk = walks + direction * _WORDS
    chunks, per_run, run = runs_of(walk)
    q += image * q_b + head * key_width
    key += image * k_b + head * key_width
    v += image * v_b + head * value_width
    gates += image * gates_b + direction * gates_k + head * key_width
    grad += image * grad_b + direction * grad_k + head * value_width
    place = image * tl.num_programs(1) + direction
    dq += place * dq_k + head * key_width
    dk += place * dq_k + head * key_width
    dgates += place * dq_k + head * key_width
    dv += place * dv_k + head * value_width
    carried = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    not_before = tl.where(row[None, :] >= row[:, None], 1.0, 0.0)
    for back in range(chunks):
        chunk = chunks - 1 - back
        reads, writes, there = tokens_of(walk, chunk, per_run, run)
        at = (
            states
            + ((place * head_count + head) * most + chunk) * key_width * value_width
            + n[:, None] * value_width
            + c[None, :]
        )
        state = tl.load(at, mask=(n < key_width)[:, None] & (c < value_width)[None, :], other=0.0)
        q_rows = rows_at(q, reads, q_l, there, n, key_width, 0.0)
        k_rows = rows_at(key, reads, k_l, there, n, key_width, 0.0)
        v_rows = rows_at(v, reads, v_l, there, c, value_width, 0.0)
        gate = tl.exp(rows_at(gates, reads, gates_l, there, n, key_width, 0.0))
        out = rows_at(grad, writes, grad_l, there, c, value_width, 0.0) * factor
        weights, from_start, to_end = inside(q_rows, k_rows, gate)
        total = row_of(from_start, _STEPS - 1)
        k_out = k_rows * to_end
        behind = total[:, None] * state + product(tl.trans(k_out), v_rows)
        dq_rows = product(out, tl.trans(state)) * from_start
        dk_rows = product(v_rows, tl.trans(carried)) * to_end
        dv_rows = product(tl.trans(weights), out) + product(k_out, carried)
        dweights = product(out, tl.trans(v_rows))
        dq_rows, dk_rows = inside_adjoint(q_rows, k_rows, gate, dweights, dq_rows, dk_rows)
        through = product(not_before, q_rows * dq_rows - k_rows * dk_rows) + tl.sum(behind * carried, 1)[None, :]
        store_rows(dq, reads, head_count * key_width, there, n, key_width, dq_rows)
        store_rows(dk, reads, head_count * key_width, there, n, key_width, dk_rows)
        store_rows(dv, reads, head_count * value_width, there, c, value_width, dv_rows)
        store_rows(dgates, reads, head_count * key_width, there, n, key_width, tl.where(gate > 0, through, 0.0))
        carried = total[:, None] * carried + product(tl.trans(q_rows * from_start), out)
        carried = tl.where(chunk % per_run == 0, 0.0, carried)
