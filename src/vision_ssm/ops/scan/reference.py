"""The definition of correct: the recurrence and its adjoint, one token at a time, in any floating dtype.

Written for reading, not for speed; every other backend is tested against it in outputs and gradients.

    delta[t] = softplus(delta_in[t] + bias)        h[t] = exp(delta[t] A) * h[t-1] + delta[t] B[t] u[t]
    y[t] = C[t] . h[t] + D u[t]                    out[token] = sum over directions of y, times silu(z)

Source: Mamba, arXiv:2312.00752, eq. 2-4 and Alg. 2. B is Euler-discretised (delta B), as in the authors' code,
not by the full zero-order hold of eq. 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.scan.contract import ScanCall, ScanGradients, chunks_of, saved_states_shape

__all__ = ["backward", "forward"]


def forward(call: ScanCall, save_states: bool) -> tuple[Tensor, Tensor]:
    """Run the recurrence of every direction."""
    states = call.A.new_zeros(saved_states_shape(call)) if save_states else call.A.new_empty(0)
    outputs = [_scan(call, direction, states[:, direction] if save_states else None) for direction in _all(call)]
    y = sum(outputs[1:], outputs[0]) if call.merge else torch.stack(outputs, 1)
    if call.z is not None:
        gate = F.silu(call.z.to(y.dtype))
        y = y * (gate if call.merge else gate[:, None])
    return y.to(call.u.dtype), states


def backward(call: ScanCall, states: Tensor, grad: Tensor) -> ScanGradients:
    """Run the adjoint recurrence of every direction; the states are recomputed, ``states`` is not needed."""
    dtype = call.A.dtype
    grad = grad.to(dtype)
    du, ddelta, dB, dC = (torch.zeros_like(x, dtype=dtype) for x in (call.u, call.delta, call.B, call.C))
    dA, dbias, dD = torch.zeros_like(call.A), call.A.new_zeros(call.A.shape[:2]), call.A.new_zeros(call.A.shape[:2])
    dz = None if call.z is None else torch.zeros_like(call.z, dtype=dtype)
    for k in _all(call):
        out = grad if call.merge else grad[:, k]
        if call.z is not None and dz is not None:
            z = call.z.to(dtype)
            sigmoid = torch.sigmoid(z)
            dz += out * _scan(call, k, None) * (sigmoid * (1 + z * (1 - sigmoid)))
            out = out * z * sigmoid
        _adjoint(call, k, out, (du, ddelta, dA, dB, dC, dD, dbias))
    return ScanGradients(
        du.to(call.u.dtype),
        ddelta.to(call.delta.dtype),
        dA,
        dB.to(call.B.dtype),
        dC.to(call.C.dtype),
        dD if call.D is not None else None,
        dz.to(call.u.dtype) if dz is not None else None,
        dbias if call.delta_bias is not None else None,
    )


def _all(call: ScanCall) -> range:
    return range(len(call.traversals))


def _of(x: Tensor, direction: int) -> Tensor:
    """Return the part of [B, K|1, L, ...] that ``direction`` reads (a view)."""
    return x[:, direction if x.shape[1] > 1 else 0]


def _inputs(call: ScanCall, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return u, the raw and the final step size [B, L, C], and B, C [B, L, N] of direction k in the state's dtype."""
    u, raw, b, c = (_of(x, k).to(call.A.dtype) for x in (call.u, call.delta, call.B, call.C))
    if call.delta_bias is not None:
        raw = raw + call.delta_bias[k]
    return u, raw, F.softplus(raw) if call.delta_softplus else raw, b, c


def _scan(call: ScanCall, k: int, states: Tensor | None) -> Tensor:
    """Return y of direction k where it is written, [B, L, C], ungated; fill ``states`` [B, chunks, N, C] if given."""
    u, _, delta, b, c = _inputs(call, k)
    walk = call.traversals[k]
    writes = walk.writes()
    chunk_starts = {chunk.start: number for number, chunk in enumerate(chunks_of(walk))}
    h = nothing = u.new_zeros(call.batch, call.channels, call.states)
    y = [u.new_zeros(call.batch, call.channels)] * call.tokens
    for step in range(walk.length):
        t, to = walk.token(step), writes.token(step)
        if walk.starts_anew(step):
            h = nothing
        if states is not None and step in chunk_starts:
            states[:, chunk_starts[step]] = h.transpose(1, 2)
        h = torch.exp(delta[:, t, :, None] * call.A[k]) * h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None, :]
        y[to] = (h * c[:, t, None, :]).sum(-1)
        if call.D is not None:
            y[to] = y[to] + call.D[k] * u[:, t]
    return torch.stack(y, 1) if y else u.new_zeros(call.batch, 0, call.channels)


def _adjoint(call: ScanCall, k: int, dy: Tensor, into: tuple[Tensor, ...]) -> None:
    """Add the gradients of direction k for ``dy`` [B, L, C], the gradient of its ungated output."""
    du, ddelta, dA, dB, dC, dD, dbias = into
    u, raw, delta, b, c = _inputs(call, k)
    walk, A = call.traversals[k], call.A[k]
    writes = walk.writes()
    nothing = u.new_zeros(call.batch, call.channels, call.states)
    before: list[Tensor] = []  # the states around each step
    after: list[Tensor] = []
    for step in range(walk.length):
        t = walk.token(step)
        before.append(nothing if walk.starts_anew(step) else after[-1])
        decay = torch.exp(delta[:, t, :, None] * A)
        after.append(decay * before[-1] + (delta[:, t] * u[:, t])[..., None] * b[:, t, None, :])
    carried = nothing  # dL/dh[t] through all later steps
    for step in reversed(range(walk.length)):
        t, d_y = walk.token(step), dy[:, writes.token(step)]
        g = carried + d_y[..., None] * c[:, t, None, :]
        carried = torch.exp(delta[:, t, :, None] * A) * g
        through_decay = carried * before[step]
        g_b = (g * b[:, t, None, :]).sum(-1)
        d_delta = (through_decay * A).sum(-1) + u[:, t] * g_b
        if call.delta_softplus:
            d_delta = d_delta * torch.sigmoid(raw[:, t])
        _of(ddelta, k)[:, t] += d_delta
        _of(du, k)[:, t] += delta[:, t] * g_b + (call.D[k] * d_y if call.D is not None else 0)
        _of(dB, k)[:, t] += ((delta[:, t] * u[:, t])[..., None] * g).sum(1)
        _of(dC, k)[:, t] += (d_y[..., None] * after[step]).sum(1)
        dA[k] += (through_decay * delta[:, t, :, None]).sum(0)
        dD[k] += (d_y * u[:, t]).sum(0)
        dbias[k] += d_delta.sum(0)
        if walk.starts_anew(step):
            carried = nothing
