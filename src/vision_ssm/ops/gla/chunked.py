"""Gated linear attention in plain torch operations on any device: matrix products inside chunks, a loop over chunks.

A chunk of T tokens is split in halves, these in halves again, down to single tokens. What the left half of a pair
hands to the right half is one product of matrices, because the decay between token j on the left and token i on the
right parts at the middle m:

    exp(g[j+1] + ... + g[i]) = exp(g[m+1] + ... + g[i]) · exp(g[j+1] + ... + g[m])      g = log-gates, at most 0

    o[i] += scale · sum over j of ((q[i] ⊙ exp(g[m+1] + ... + g[i])) · (k[j] ⊙ exp(g[j+1] + ... + g[m]))) v[j]

Chunks hand on the state in the same way. Why this is stable for every gate: no exponent is above 0, so that nothing
overflows; each is a sum of the gates that it stands for, made by adding halves up and never as a difference of two
sums, so that a gate near 0 (α near 1) keeps its digits beside one of -1e4 in the same chunk, and what underflows is
what the recurrence forgets too. The usual form, q exp(b) times k exp(-b) with b summed from the chunk's start, has
neither property.

``forward`` is out of place throughout, so that transforms of torch see through it and differentiate it at will.

Source: GLA, arXiv:2312.06635, section 4 (chunks, and the trouble with exp(-b)); the halving is this library's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.gla.contract import GlaCall, GlaGradients

__all__ = ["backward", "forward"]

CHUNK = 64  # a power of two


class _Plan(NamedTuple):
    """Walks of one form side by side: which token each step of a padded chunk visits or writes, L where none.

    R runs (sequences of their own) of J chunks of T steps.
    """

    directions: tuple[int, ...]
    form: tuple[int, int, int]  # R, J, T
    reads: Tensor  # [G * R * J * T]
    writes: Tensor
    read_at: Tensor  # [G, L]: the step that visits each token, G * R * J * T where none does
    written_at: Tensor


class _Level(NamedTuple):
    """Pairs of blocks of s steps: the decays from the middle to each step on the right, and from each on the left."""

    size: int
    right: Tensor  # [..., T / 2s, s, N]
    left: Tensor


def forward(call: GlaCall) -> Tensor:
    """Run all directions of one form at a time."""
    outputs: list[Tensor] = [torch.empty(0)] * len(call.traversals)
    for plan in _plans(call):
        q, k, v, g = _gather(call, plan)
        levels, prefix, suffix = _decays(g)
        before, _ = _states(k * suffix.exp(), v, prefix)
        o = _pairs(q, k, v, levels) + (q * prefix.exp()) @ before
        for at, y in zip(plan.directions, _scatter(call.scale * o, plan, plan.written_at), strict=True):
            outputs[at] = y
    y = sum(outputs[1:], outputs[0]) if call.merge else torch.stack(outputs, 1)
    return y.to(call.v.dtype)


def backward(call: GlaCall, grad: Tensor) -> GlaGradients:
    """Recompute the states, then go through the halves from the largest to the smallest."""
    shared = [torch.zeros_like(x, dtype=call.log_gates.dtype) for x in (call.q, call.k, call.v)]
    dgates: list[Tensor] = [torch.empty(0)] * len(call.traversals)
    for plan in _plans(call):
        q, k, v, g = _gather(call, plan)
        do = call.scale * _by_chunk(call, plan, grad.to(g.dtype), plan.writes, own=not call.merge)
        levels, prefix, suffix = _decays(g)
        q_in, k_out = prefix.exp(), suffix.exp()
        before, total = _states(k * k_out, v, prefix)
        after = _adjoint_states(q * q_in, do, total)
        dq, dk, dv = q_in * (do @ before.mT), k_out * (v @ after.mT), (k * k_out) @ after
        # Gradients of the two sums of a whole chunk, and of its total, which decays the state.
        dprefix, dsuffix = q * dq, k * dk
        dprefix = _add_last(dprefix, (total[..., None] * before * after).sum(-1))
        weight, dweight = (q * k).sum(-1, keepdim=True), (do * v).sum(-1, keepdim=True)
        dq, dk, dv = dq + dweight * k, dk + dweight * q, dv + weight * do
        dg = _through_pairs((q, k, v, do), levels, (dq, dk, dv), dprefix, dsuffix)
        shared = [
            torch.stack(_scatter(x, plan, plan.read_at)).sum(0).add_(so_far)
            for so_far, x in zip(shared, (dq, dk, dv), strict=True)
        ]
        for at, one in zip(plan.directions, _scatter(dg, plan, plan.read_at), strict=True):
            dgates[at] = one
    dq, dk, dv = (x.to(call.q.dtype) for x in shared)
    return GlaGradients(dq, dk, dv, torch.stack(dgates, 1))


# ---------------------------------------------------------------------------------------------- tokens and chunks


def _plans(call: GlaCall) -> Iterator[_Plan]:
    """Group the walks by length and form."""
    groups: dict[tuple[int, int], list[int]] = {}
    for at, walk in enumerate(call.traversals):
        run = walk.inner_count if walk.reset else max(walk.length, 1)
        groups.setdefault((walk.length, run), []).append(at)
    for (length, run), members in groups.items():
        yield _plan(call, members, length, run)


def _plan(call: GlaCall, directions: Sequence[int], length: int, run: int) -> _Plan:
    walks, tokens, device = [call.traversals[at] for at in directions], call.tokens, call.q.device
    runs = -(-length // run)
    size = min(CHUNK, 1 << max(min(run, length) - 1, 0).bit_length())
    chunks = -(-min(run, max(length, 1)) // size)
    step = torch.arange(length, device=device)
    place = step // run * (chunks * size) + step % run  # of a step among the padded ones
    steps = runs * chunks * size
    total = len(walks) * steps
    reads, writes = (torch.full((len(walks), steps), tokens, device=device) for _ in range(2))
    read_at, written_at = (torch.full((len(walks), tokens), total, device=device) for _ in range(2))
    for row, walk in enumerate(walks):
        for whole, back, own in ((reads, read_at, walk), (writes, written_at, walk.writes())):
            visited = own.tokens(step)
            whole[row, place] = visited
            back[row, visited] = row * steps + place
    return _Plan(tuple(directions), (runs, chunks, size), reads.flatten(), writes.flatten(), read_at, written_at)


def _gather(call: GlaCall, plan: _Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q, k, the values and the log-gates as [B, G, R, H, J, T, N or V] in the state's dtype."""
    dtype = call.log_gates.dtype
    q, k, v = (_by_chunk(call, plan, x.to(dtype), plan.reads, own=False) for x in (call.q, call.k, call.v))
    return q, k, v, _by_chunk(call, plan, call.log_gates, plan.reads, own=True)


def _by_chunk(call: GlaCall, plan: _Plan, x: Tensor, tokens: Tensor, *, own: bool) -> Tensor:
    """Take x [B, L, H C], or [B, K, L, H C] where each direction has its own, at ``tokens``; zeros where none is."""
    groups = len(plan.directions)
    padded = F.pad(x, (0, 0, 0, 1))
    if own:
        each = tokens.view(groups, -1).unbind()
        taken = torch.stack(
            [padded[:, at].index_select(1, one) for at, one in zip(plan.directions, each, strict=True)], 1
        )
    else:
        taken = torch.unflatten(padded.index_select(1, tokens), 1, (groups, tokens.shape[0] // groups))
    split = taken.reshape(x.shape[0], groups, *plan.form, call.heads, x.shape[-1] // call.heads)
    return split.movedim(5, 3)


def _scatter(x: Tensor, plan: _Plan, steps: Tensor) -> tuple[Tensor, ...]:
    """Return x [B, G, R, H, J, T, C] at the tokens: [B, L, H C] for each of the G directions."""
    flat = x.movedim(3, 5).flatten(5).flatten(1, 4)
    rows = F.pad(flat, (0, 0, 0, 1)).index_select(1, steps.flatten())
    return torch.unflatten(rows, 1, tuple(steps.shape)).unbind(1)


# ------------------------------------------------------------------------------------------------- inside a chunk


def _halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split x [..., T, C] into the left and the right blocks of its pairs, [..., T / 2s, s, C] each."""
    left, right = torch.unflatten(x, -2, (x.shape[-2] // (2 * size), 2, size)).unbind(-3)
    return left, right


def _whole(left: Tensor, right: Tensor) -> Tensor:
    """Undo :func:`_halves`."""
    return torch.stack([left, right], -3).flatten(-4, -2)


def _add_last(x: Tensor, added: Tensor) -> Tensor:
    """Add [..., C] to the last row of x [..., s, C]."""
    return torch.cat([x[..., :-1, :], x[..., -1:, :] + added[..., None, :]], -2)


def _decays(g: Tensor) -> tuple[list[_Level], Tensor, Tensor]:
    """Return all levels, and the sums from the chunk's start to each step and from behind it to the chunk's end."""
    prefix, suffix, levels, size = g, torch.zeros_like(g), [], 1
    while size < g.shape[-2]:
        (to_left, to_right), (from_left, from_right) = _halves(prefix, size), _halves(suffix, size)
        levels.append(_Level(size, to_right.exp(), from_left.exp()))
        prefix = _whole(to_left, to_right + to_left[..., -1:, :])
        suffix = _whole(from_left + to_right[..., -1:, :], from_right)
        size *= 2
    return levels, prefix, suffix


def _pairs(q: Tensor, k: Tensor, v: Tensor, levels: list[_Level]) -> Tensor:
    """Return what the tokens of a chunk hand to each other, and each to itself: [..., T, V]."""
    o = (q * k).sum(-1, keepdim=True) * v
    for size, right, left in levels:
        weights = (_halves(q, size)[1] * right) @ (_halves(k, size)[0] * left).mT
        o_left, o_right = _halves(o, size)
        o = _whole(o_left, o_right + weights @ _halves(v, size)[0])
    return o


def _through_pairs(
    inputs: tuple[Tensor, ...], levels: list[_Level], into: tuple[Tensor, ...], dprefix: Tensor, dsuffix: Tensor
) -> Tensor:
    """Add the gradients within chunks to those in ``into`` (q, k, v); return that of the log-gates.

    The sums of gates are taken apart again as :func:`_decays` put them together.
    """
    q, k, v, do = inputs
    dq, dk, dv = into
    for size, right, left in reversed(levels):
        (p_left, p_right), (s_left, s_right) = _halves(dprefix, size), _halves(dsuffix, size)
        p_left, p_right = _add_last(p_left, p_right.sum(-2)), _add_last(p_right, s_left.sum(-2))
        q_right, k_left = _halves(q, size)[1] * right, _halves(k, size)[0] * left
        v_left, do_right = _halves(v, size)[0], _halves(do, size)[1]
        dweights = do_right @ v_left.mT
        q_part, k_part = dweights @ k_left, dweights.mT @ q_right
        _halves(dq, size)[1].add_(q_part * right)
        _halves(dk, size)[0].add_(k_part * left)
        _halves(dv, size)[0].add_((k_left @ q_right.mT) @ do_right)
        dprefix, dsuffix = _whole(p_left, p_right + q_part * q_right), _whole(s_left + k_part * k_left, s_right)
    return dprefix


# ------------------------------------------------------------------------------------------------ between chunks


def _states(k: Tensor, v: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states before every chunk, [..., J, N, V], and the decay of each chunk, [..., J, N]."""
    total = prefix[..., -1, :].exp()
    added = k.mT @ v
    state, states = torch.zeros_like(added[..., 0, :, :]), []
    for decay, new in zip(total.unbind(-2), added.unbind(-3), strict=True):
        states.append(state)
        state = torch.addcmul(new, decay[..., None], state)
    return torch.stack(states, -3) if states else added, total


def _adjoint_states(q: Tensor, do: Tensor, total: Tensor) -> Tensor:
    """Return the gradients of the states behind every chunk, [..., J, N, V]."""
    added = q.mT @ do
    carried, states = torch.zeros_like(added[..., 0, :, :]), []
    for decay, new in zip(reversed(total.unbind(-2)), reversed(added.unbind(-3)), strict=True):
        states.append(carried)
        carried = torch.addcmul(new, decay[..., None], carried)
    return torch.stack(states[::-1], -3) if states else added
