"""The scan in plain torch operations on any device, one chunk of tokens at a time, forward and backward.

Inside a chunk everything but the recurrence itself is a few large tensor operations; the recurrence is one in-place
multiply-add per step. Nothing of size L x C x N is ever stored: the forward pass keeps the state at chunk
boundaries only, the backward pass recomputes a chunk from its boundary, and images are taken a few at a time so that
the working set has a fixed bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.scan.contract import CHUNK, ScanCall, ScanGradients, chunks_of, saved_states_shape
from vision_ssm.ops.traversal import Traversal

__all__ = ["backward", "forward"]

# Bound on the elements of one [images, CHUNK, C, N] temporary: 16 MiB in float32, about one level-3 cache.
WORKING_SET = 1 << 22


class _Chunk(NamedTuple):
    """One chunk of one direction for some images, in the state's dtype. T steps, b images."""

    images: slice
    tokens: Tensor  # [T]
    writes: Tensor  # [T], where the outputs go
    u: Tensor  # [b, T, C]
    raw: Tensor  # [b, T, C], step size before softplus
    delta: Tensor  # [b, T, C]
    b: Tensor  # [b, T, N]
    c: Tensor  # [b, T, N]
    decay: Tensor  # [b, T, C, N]
    h: Tensor  # [b, T, C, N], holds delta*u*B until the recurrence overwrites it with the states


def forward(call: ScanCall, save_states: bool) -> tuple[Tensor, Tensor]:
    """Run every direction chunk after chunk, adding each chunk's output at its own tokens."""
    states = call.A.new_empty(saved_states_shape(call)) if save_states else call.A.new_empty(0)
    y = torch.zeros_like(call.output(), dtype=call.A.dtype)
    for k, walk in enumerate(call.traversals):
        into = y if call.merge else y[:, k]
        for images in _image_slices(call):
            h = nothing = call.A.new_zeros(call.u[images].shape[0], call.channels, call.states)
            for number, steps in enumerate(chunks_of(walk)):
                if walk.starts_anew(steps.start):
                    h = nothing
                if save_states:
                    states[images, k, number] = h.transpose(1, 2)
                chunk = _load(call, k, walk, images, steps)
                h = _recur(chunk, h)
                into[images].index_add_(1, chunk.writes, _readout(call, k, chunk))
    if call.z is not None:
        gate = F.silu(call.z.to(y.dtype))
        y.mul_(gate if call.merge else gate[:, None])
    return y.to(call.u.dtype), states


def backward(call: ScanCall, states: Tensor, grad: Tensor) -> ScanGradients:
    """Walk the chunks backwards, recomputing each from its boundary state."""
    dtype = call.A.dtype
    du, ddelta, dB, dC = (torch.zeros_like(x, dtype=dtype) for x in (call.u, call.delta, call.B, call.C))
    dA, dD, dbias = torch.zeros_like(call.A), call.A.new_zeros(call.A.shape[:2]), call.A.new_zeros(call.A.shape[:2])
    dz = None if call.z is None else torch.zeros_like(call.z, dtype=dtype)
    for k, walk in enumerate(call.traversals):
        for images in _image_slices(call):
            carried = nothing = call.A.new_zeros(call.u[images].shape[0], call.channels, call.states)
            for number, steps in reversed(list(enumerate(chunks_of(walk)))):
                chunk = _load(call, k, walk, images, steps)
                before = states[images, k, number].transpose(1, 2)
                _recur(chunk, before)
                out = (grad if call.merge else grad[:, k])[images][:, chunk.writes].to(dtype)
                if call.z is not None and dz is not None:
                    z = call.z[images][:, chunk.writes].to(dtype)
                    sigmoid = torch.sigmoid(z)
                    slope = sigmoid * (1 + z * (1 - sigmoid))
                    dz[images].index_add_(1, chunk.writes, out * _readout(call, k, chunk) * slope)
                    out = out * z * sigmoid
                carried = _adjoint(call, k, chunk, before, out, carried, (du, ddelta, dA, dB, dC, dD, dbias))
                if walk.starts_anew(steps.start):
                    carried = nothing
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


def _image_slices(call: ScanCall) -> Iterator[slice]:
    """Split the batch so that one chunk's temporaries stay within the working set."""
    step = max(1, WORKING_SET // max(1, CHUNK * call.channels * call.states))
    for first in range(0, call.batch, step):
        yield slice(first, min(first + step, call.batch))


def _of(x: Tensor, k: int) -> Tensor:
    return x[:, k if x.shape[1] > 1 else 0]


def _load(call: ScanCall, k: int, walk: Traversal, images: slice, steps: range) -> _Chunk:
    """Gather one chunk's inputs and compute what does not depend on the state."""
    step = torch.arange(steps.start, steps.stop, device=call.u.device)
    tokens, writes = walk.tokens(step), walk.writes().tokens(step)
    u, raw, b, c = (_of(x, k)[images][:, tokens].to(call.A.dtype) for x in (call.u, call.delta, call.B, call.C))
    if call.delta_bias is not None:
        raw = raw + call.delta_bias[k]
    delta = F.softplus(raw) if call.delta_softplus else raw
    decay = (delta[..., None] * call.A[k]).exp_()
    return _Chunk(images, tokens, writes, u, raw, delta, b, c, decay, (delta * u)[..., None] * b[:, :, None, :])


def _recur(chunk: _Chunk, h: Tensor) -> Tensor:
    """Turn ``chunk.h`` into the states after each step, starting from ``h`` [b, C, N]; return the last one."""
    for step in range(chunk.h.shape[1]):
        h = chunk.h[:, step].addcmul_(chunk.decay[:, step], h)
    return h


def _readout(call: ScanCall, k: int, chunk: _Chunk) -> Tensor:
    """Return C.h + D u of the chunk, [b, T, C]."""
    y = torch.matmul(chunk.h, chunk.c[..., None]).squeeze(-1)
    return y if call.D is None else y.addcmul_(call.D[k], chunk.u)


def _adjoint(
    call: ScanCall, k: int, chunk: _Chunk, before: Tensor, dy: Tensor, carried: Tensor, into: tuple[Tensor, ...]
) -> Tensor:
    """Add the chunk's gradients for ``dy`` [b, T, C]; return dL/dh carried to the chunk before, [b, C, N]."""
    du, ddelta, dA, dB, dC, dD, dbias = into
    images, tokens, A = chunk.images, chunk.tokens, call.A[k]
    g = dy[..., None] * chunk.c[:, :, None, :]
    for step in reversed(range(g.shape[1])):
        carried = chunk.decay[:, step] * g[:, step].add_(carried)
    _of(dC, k)[images].index_add_(1, tokens, torch.matmul(dy[:, :, None, :], chunk.h).squeeze(2))
    _of(dB, k)[images].index_add_(1, tokens, torch.matmul((chunk.delta * chunk.u)[:, :, None, :], g).squeeze(2))
    g_b = torch.matmul(g, chunk.b[..., None]).squeeze(-1)
    through_decay = g.mul_(chunk.decay)
    through_decay[:, 0].mul_(before)
    through_decay[:, 1:].mul_(chunk.h[:, :-1])
    d_delta = (through_decay * A).sum(-1).addcmul_(chunk.u, g_b)
    if call.delta_softplus:
        d_delta = d_delta * torch.sigmoid(chunk.raw)
    dA[k] += (through_decay * chunk.delta[..., None]).sum((0, 1))
    _of(ddelta, k)[images].index_add_(1, tokens, d_delta)
    d_u = chunk.delta * g_b if call.D is None else (chunk.delta * g_b).addcmul_(call.D[k], dy)
    _of(du, k)[images].index_add_(1, tokens, d_u)
    dD[k] += (dy * chunk.u).sum((0, 1))
    dbias[k] += d_delta.sum((0, 1))
    return carried
