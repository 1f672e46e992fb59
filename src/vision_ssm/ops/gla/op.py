"""Gated linear attention: one public function, one registered torch operator with fake and autograd, many backends.

    S[t] = diag(α[t]) S[t-1] + k[t] v[t]ᵀ        o[t] = scale · S[t]ᵀ q[t]        α = exp(log_gates)

for each of H heads, along K walks over the tokens: q and k [B, L, H N], v [B, L, H V], log_gates [B, K, L, H N];
o [B, L, H V], the sum over the walks, or [B, K, L, H V].

Glossary: B batch, K directions (traversals), L tokens in memory order, H heads, N key and V value channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops.dispatch import AUTO, choose, refuse_tracing, without_autocast
from vision_ssm.ops.gate import check_tensors, show
from vision_ssm.ops.gla import chunked
from vision_ssm.ops.gla.contract import GlaCall
from vision_ssm.ops.registration import Operator, register
from vision_ssm.ops.traversal import WORDS, Traversal, checked_traversals, flatten

__all__ = ["gla"]


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gates: Tensor,
    *,
    heads: int = 1,
    traversals: Sequence[Traversal] | None = None,
    scale: float | None = None,
    merge: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Run gated linear attention along K traversals of the same tokens.

    For each head, each direction and the tokens t in the order of its traversal::

        S[t] = diag(exp(log_gates[t])) S[t-1] + k[t] v[t]ᵀ,   S before the first token = 0
        o[t] = scale · S[t]ᵀ q[t]

    A token counts itself, in every direction. Tokens stay where they are: every o is written at the token that produced
    it (or where the traversal says). All directions read the same q, k and v; each has gates of its own.

    Args:
        q: queries, [B, L, H N], head after head.
        k: keys, [B, L, H N].
        v: values, [B, L, H V].
        log_gates: logarithms of the gates, at most 0, [B, K, L, H N]; -inf forgets everything.
        heads: H.
        traversals: K walks over the L tokens; default: one, in memory order. Tokens that a walk does not visit get
            zero from it.
        scale: of the result; default 1 / sqrt(N).
        merge: sum the directions.
        backend: 'reference', 'chunked', 'cpu' or 'triton' to force one; default: the environment variable
            VISION_SSM_BACKEND, else the fastest that runs on q's device.

    Returns:
        [B, L, H V] if ``merge`` else [B, K, L, H V], in v's dtype.

    q, k and v may be float32, bfloat16, float16 or float64; mixed dtypes are promoted. The state and the log-gates are
    float32 whatever the input (float64 when the input is).

    Raises:
        ShapeError: a shape does not fit, a tensor is not floating or on another device than q, or a traversal leaves
            the tokens or visits one twice.
        BackendError: the backend asked for cannot run this call.

    Source: ViG, arXiv:2405.18425, the bidirectional form with a gate for each direction; GLA, arXiv:2312.06635, eq. 3.
    """
    refuse_tracing("gla")
    walks = None if traversals is None else tuple(traversals)
    _check_shapes(1 if walks is None else len(walks), q, k, v, log_gates, heads)
    walks = walks or (Traversal.sequence(q.shape[1]),)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    y: Tensor = torch.ops.vision_ssm.gla(
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        log_gates.to(state_dtype),
        heads,
        float((q.shape[2] // heads) ** -0.5 if scale is None else scale),
        flatten(walks),
        merge,
        backend or AUTO,
    )
    return y.to(v.dtype)


def _check_shapes(walks: int, q: Tensor, k: Tensor, v: Tensor, log_gates: Tensor, heads: int) -> None:
    """Raise ShapeError, naming the tensor, unless every shape follows from those of q, v and the number of walks."""
    check_tensors("gla", q, q=q, k=k, v=v, log_gates=log_gates)
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise ShapeError(f"gla expects heads as a positive whole number, got {heads!r}")
    if walks < 1:
        raise ShapeError("gla needs at least one traversal, got none")
    if q.dim() != 3 or v.dim() != 3:
        raise ShapeError(f"gla expects q [B, L, H N] and v [B, L, H V], got q {show(q.shape)} and v {show(v.shape)}")
    for name, x in (("q", q), ("v", v)):
        if x.shape[2] < 1 or x.shape[2] % heads:
            raise ShapeError(f"{name} must have as many channels for each of {heads} heads, got {show(x.shape)}")
    batch, tokens, channels = q.shape
    for name, x, shape in (
        ("k", k, (batch, tokens, channels)),
        ("v", v, (batch, tokens, v.shape[2])),
        ("log_gates", log_gates, (batch, walks, tokens, channels)),
    ):
        if x.shape != shape:
            raise ShapeError(
                f"{name} must be {show(shape)} to fit q {show(q.shape)} and {walks} traversals, got {show(x.shape)}"
            )


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gates: Tensor,
    heads: int,
    scale: float,
    walks: Sequence[int],
    merge: bool,
) -> GlaCall:
    _check_shapes(len(walks) // WORDS, q, k, v, log_gates, heads)
    state_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if not q.dtype == k.dtype == v.dtype or log_gates.dtype != state_dtype:
        raise ShapeError(
            f"vision_ssm::gla takes q, k and v of one dtype, and log_gates in {state_dtype}, got {q.dtype}, {k.dtype}, "
            f"{v.dtype} and {log_gates.dtype}; vision_ssm.ops.gla converts them"
        )
    traversals = checked_traversals(tuple(walks), q.shape[1])
    return GlaCall(q, k, v, log_gates, heads, scale, traversals, merge)


def _forward(*args: Any) -> Tensor:
    *inputs, backend = args
    call = _call(*inputs)
    with without_autocast(call.q.device):
        y: Tensor = choose("gla", call.q.device, call.q.dtype, backend).functions.forward(call)
    return y


def _backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *inputs, backend = args
    call = _call(*inputs)
    if grad.shape != call.output_shape() or grad.dtype != call.v.dtype:
        raise ShapeError(
            f"vision_ssm::gla_backward takes a gradient {show(call.output_shape())} in {call.v.dtype}, "
            f"got {show(grad.shape)} in {grad.dtype}"
        )
    with without_autocast(call.q.device):
        return tuple(choose("gla", call.q.device, call.q.dtype, backend).functions.backward(call, grad))


def _composite(*args: Any) -> Tensor:
    *inputs, backend = args
    call = _call(*inputs)
    choose("gla", call.q.device, call.q.dtype, backend)  # what cannot run is refused here too
    with without_autocast(call.q.device):
        return chunked.forward(call)


def _forward_fake(*args: Any) -> Tensor:
    v: Tensor = args[2]
    log_gates, merge = args[3], args[7]
    batch, tokens, channels = v.shape
    y: Tensor = v.new_empty((batch, *(() if merge else (log_gates.shape[1],)), tokens, channels))
    return y


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in args[1:5])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    return (*torch.ops.vision_ssm.gla_backward(grad, *ctx.saved_tensors, *ctx.rest), *(None,) * 5)


_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor log_gates, int heads, float scale, SymInt[] walks, bool merge"
register(
    "gla",
    f"({_ARGUMENTS}, str backend) -> Tensor",
    f"(Tensor grad, {_ARGUMENTS}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    Operator(_forward, _backward, _forward_fake, _backward_fake, _setup_context, _autograd, _composite),
)
