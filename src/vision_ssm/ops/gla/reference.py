"""The definition of correct: the recurrence and its adjoint, one token at a time, in any floating dtype.

Written for reading, not for speed; every other backend is tested against it in outputs and gradients.

    S[t] = diag(α[t]) S[t-1] + k[t] v[t]ᵀ        o[t] = scale · S[t]ᵀ q[t]        α = exp(log_gates)

Source: ViG, arXiv:2405.18425; GLA, arXiv:2312.06635, eq. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vision_ssm.ops.gla.contract import GlaCall, GlaGradients

__all__ = ["backward", "forward"]


def forward(call: GlaCall) -> Tensor:
    """Run the recurrence of every direction."""
    outputs = [_walked(call, k) for k in range(len(call.traversals))]
    y = sum(outputs[1:], outputs[0]) if call.merge else torch.stack(outputs, 1)
    return y.flatten(-2).to(call.v.dtype)


def backward(call: GlaCall, grad: Tensor) -> GlaGradients:
    """Run the adjoint recurrence of every direction."""
    q, key, v, gates = _inputs(call)
    into = dq, dk, dv, dgates = [torch.zeros_like(x) for x in (q, key, v, gates)]
    grad = torch.unflatten(grad.to(gates.dtype), -1, (call.heads, call.values))
    for k in range(len(call.traversals)):
        _adjoint(call, k, grad if call.merge else grad[:, k], into)
    dq, dk, dv = (x.flatten(-2).to(call.q.dtype) for x in (dq, dk, dv))
    return GlaGradients(dq, dk, dv, dgates.flatten(-2))


def _inputs(call: GlaCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q, k, the values and the log-gates by head, [..., L, H, N or V], in the state's dtype."""
    q, key, v, gates = (
        torch.unflatten(x.to(call.log_gates.dtype), -1, (call.heads, x.shape[-1] // call.heads))
        for x in (call.q, call.k, call.v, call.log_gates)
    )
    return q, key, v, gates


def _walked(call: GlaCall, k: int) -> Tensor:
    """Return what direction k yields where it is written, [B, L, H, V]."""
    q, key, v, gates = _inputs(call)
    walk, writes = call.traversals[k], call.traversals[k].writes()
    y = [torch.zeros_like(v[:, 0])] * call.tokens if call.tokens else []
    state = nothing = v.new_zeros(call.batch, call.heads, call.keys, call.values)
    for step in range(walk.length):
        t = walk.token(step)
        state = nothing if walk.starts_anew(step) else state
        state = torch.exp(gates[:, k, t])[..., None] * state + key[:, t, :, :, None] * v[:, t, :, None, :]
        y[writes.token(step)] = call.scale * (state * q[:, t, :, :, None]).sum(-2)
    return torch.stack(y, 1) if y else torch.zeros_like(v)


def _adjoint(call: GlaCall, k: int, dy: Tensor, into: list[Tensor]) -> None:
    """Add the gradients of direction k for ``dy`` [B, L, H, V], the gradient of its output."""
    dq, dk, dv, dgates = into
    q, key, v, gates = _inputs(call)
    walk, writes = call.traversals[k], call.traversals[k].writes()
    nothing = v.new_zeros(call.batch, call.heads, call.keys, call.values)
    before: list[Tensor] = []  # the states around each step
    after: list[Tensor] = []
    for step in range(walk.length):
        t = walk.token(step)
        before.append(nothing if walk.starts_anew(step) else after[-1])
        added = key[:, t, :, :, None] * v[:, t, :, None, :]
        after.append(torch.exp(gates[:, k, t])[..., None] * before[-1] + added)
    carried = nothing  # dL/dS[t] through all later steps
    for step in reversed(range(walk.length)):
        t, d_y = walk.token(step), call.scale * dy[:, writes.token(step)]
        dq[:, t] += (after[step] * d_y[:, :, None]).sum(-1)
        g = carried + q[:, t, :, :, None] * d_y[:, :, None]
        dk[:, t] += (g * v[:, t, :, None, :]).sum(-1)
        dv[:, t] += (g * key[:, t, :, :, None]).sum(-2)
        carried = torch.exp(gates[:, k, t])[..., None] * g
        dgates[:, k, t] += (carried * before[step]).sum(-1)
        if walk.starts_anew(step):
            carried = nothing
