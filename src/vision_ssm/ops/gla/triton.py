"""Gated linear attention in Triton, for GPUs: the launches; the kernels are in triton_kernels.py."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from vision_ssm.errors import BackendError
from vision_ssm.ops.gla.contract import GlaCall, GlaGradients
from vision_ssm.ops.gla.triton_kernels import STEPS, attend, attend_adjoint
from vision_ssm.ops.gpu import on_device_of
from vision_ssm.ops.traversal import Cover, Traversal, cover_of, flatten

__all__ = ["backward", "forward"]

WIDEST = 128  # key or value channels of a head: what a program has in registers
MOST_TOKENS = 2**31 - STEPS  # the kernels count steps in 32 bits; offsets in memory have 64


def forward(call: GlaCall) -> Tensor:
    """Run the forward kernel; every direction writes float32 results of its own, which are summed in order."""
    call = _checked(call)
    parts = _parts(call, call.v.shape[2])
    if parts.numel():
        with on_device_of(call.q):
            _attend(call, parts, None)
    return (parts.sum(1) if call.merge else parts).to(call.v.dtype)


def backward(call: GlaCall, grad: Tensor) -> GlaGradients:
    """Recompute the state before every chunk, then run the backward kernel."""
    call = _checked(call)
    dq, dk, dgates = (_parts(call, call.q.shape[2]) for _ in range(3))
    dv = _parts(call, call.v.shape[2])
    if dq.numel():
        grad = grad[:, None].expand(-1, len(call.traversals), -1, -1) if call.merge else grad
        grad = grad if grad.stride(-1) == 1 or grad.shape[-1] == 1 else grad.contiguous()
        most = max(_chunks(walk) for walk in call.traversals)
        shape = (call.batch, len(call.traversals), call.heads, most, call.keys, call.values)
        states = call.log_gates.new_empty(shape)
        with on_device_of(call.q):
            _attend(call, dv, states)
            attend_adjoint[_grid(call)](
                *(call.q, call.k, call.v, call.log_gates, _walks(call.traversals, call.q.device), grad, states),
                *(dq, dk, dv, dgates, call.heads, call.keys, call.values, call.scale, most),
                *_strides(call),
                *grad.stride()[:3],
                *(dq.stride(1), dv.stride(1)),
                **_blocks(call),
            )
    dtype = call.q.dtype
    return GlaGradients(dq.sum(1).to(dtype), dk.sum(1).to(dtype), dv.sum(1).to(dtype), dgates)


def _attend(call: GlaCall, y: Tensor, states: Tensor | None) -> None:
    """Launch the forward kernel for its output, or for the states before every chunk alone."""
    attend[_grid(call)](
        *(call.q, call.k, call.v, call.log_gates, _walks(call.traversals, call.q.device), y),
        *(y if states is None else states, call.heads, call.keys, call.values, call.scale),
        1 if states is None else states.shape[3],
        *_strides(call),
        *y.stride()[:3],
        **_blocks(call),
        SAVE=states is not None,
        OUTPUT=states is None,
    )


def _checked(call: GlaCall) -> GlaCall:
    """Return the call with channels side by side in memory; raise BackendError for what the kernels do not take."""
    if max(call.keys, call.values) > WIDEST or call.tokens > MOST_TOKENS:
        raise BackendError(
            f"gla backend 'triton' cannot run: it takes heads of up to {WIDEST} key and value channels and up to "
            f"{MOST_TOKENS} tokens, got {call.keys}, {call.values} and {call.tokens}. Use backend='chunked'."
        )
    tensors = (
        x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in (call.q, call.k, call.v, call.log_gates)
    )
    q, k, v, log_gates = tensors
    return replace(call, q=q, k=k, v=v, log_gates=log_gates)


def _parts(call: GlaCall, channels: int) -> Tensor:
    """Return room for [B, K, L, channels], zeros where walks may leave tokens out."""
    every = cover_of(call.traversals, call.tokens) == Cover.EACH
    shape = (call.batch, len(call.traversals), call.tokens, channels)
    return (call.log_gates.new_empty if every else call.log_gates.new_zeros)(shape)


def _chunks(walk: Traversal) -> int:
    run = walk.inner_count if walk.reset else max(walk.length, 1)
    return walk.length // run * -(-run // STEPS) + -(-(walk.length % run) // STEPS)


@lru_cache(maxsize=64)
def _walks(traversals: tuple[Traversal, ...], device: torch.device) -> Tensor:
    """Return the walks in the operator's form, in the device's memory."""
    return torch.tensor(flatten(traversals), dtype=torch.int32, device=device)


def _grid(call: GlaCall) -> tuple[int, int, int]:
    return call.heads, len(call.traversals), call.batch


def _strides(call: GlaCall) -> tuple[int, ...]:
    return (*call.q.stride()[:2], *call.k.stride()[:2], *call.v.stride()[:2], *call.log_gates.stride()[:3])


def _blocks(call: GlaCall) -> dict[str, int]:
    """Matrix products take at least 16 rows and columns."""
    blocks = {"BLOCK_N": call.keys, "BLOCK_V": call.values}
    return {name: max(16, 1 << (width - 1).bit_length()) for name, width in blocks.items()} | {"num_warps": 4}
