"""The selective scan: one public function, one registered torch operator with fake and autograd, many backends.

    h[t] = exp(delta[t] A) * h[t-1] + delta[t] B[t] u[t]        y[t] = C[t] . h[t] + D u[t]

along K walks over the tokens: u and delta [B, K or 1, L, C], B and C [B, K or 1, L, N], A [K, C, N], D [K or 1, C];
y [B, L, C], the sum over the walks, or [B, K, L, C].

Glossary: B batch, K directions (traversals), L tokens in memory order, C channels, N states per channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.dispatch import AUTO, choose, refuse_tracing, without_autocast
from vision_ssm.ops.gate import check_tensors
from vision_ssm.ops.registration import Operator, register
from vision_ssm.ops.scan import composite
from vision_ssm.ops.scan.contract import ScanCall, chunk_count, saved_states_shape
from vision_ssm.ops.transforms import transformed
from vision_ssm.ops.traversal import WORDS, Traversal, checked_traversals, flatten

__all__ = ["selective_scan"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    traversals: Sequence[Traversal] | None = None,
    delta_softplus: bool = True,
    merge: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Run the selective state-space recurrence along K traversals of the same tokens.

    For each direction k and the tokens t in the order of its traversal::

        h[t] = exp(delta[t] A) * h[t-1] + delta[t] B[t] u[t],   h before the first token = 0
        y[t] = C[t] . h[t] + D u[t]

    Tokens stay where they are: every y is written at the token that produced it (or where the traversal says), so
    row-major, column-major, reversed and skipping scans cost no gathered copy.

    Args:
        u: input, [B, K or 1, L, C]; a direction axis of 1 is shared by all directions (also in delta, B and C).
        delta: step sizes before bias and softplus, [B, K or 1, L, C].
        A: state matrix, [K, C, N], negative for a stable recurrence.
        B: input projection, [B, K or 1, L, N].
        C: output projection, [B, K or 1, L, N].
        D: skip connection, [K or 1, C].
        z: gate, [B, L, C]; the result is multiplied by silu(z) at its own token. One gate serves all directions.
        delta_bias: added to delta before softplus, [K or 1, C].
        traversals: K walks over the L tokens; default: one, in memory order. Tokens that a walk does not visit get
            zero from it.
        delta_softplus: apply softplus to delta.
        merge: sum the directions.
        backend: 'reference', 'chunked', 'cpu' or 'triton' to force one; default: the environment variable
            VISION_SSM_BACKEND, else the fastest that runs on u's device.

    Returns:
        [B, L, C] if ``merge`` else [B, K, L, C], in u's dtype.

    u, delta, B, C and z may be float32, bfloat16, float16 or float64; mixed dtypes are promoted. The state, delta
    after the bias, A, D and delta_bias are float32 whatever the input (float64 when the input is).

    Raises:
        ShapeError: a shape does not fit, a tensor is not floating or on another device than u, or a traversal leaves
            the tokens or visits one twice.
        BackendError: the backend asked for cannot run this call.

    Source: Mamba, arXiv:2312.00752, eq. 2-4, Alg. 2; B is discretised as delta B, as in the authors' code.
    """
    refuse_tracing("selective_scan")
    walks = None if traversals is None else tuple(traversals)
    _check_shapes(1 if walks is None else len(walks), u, delta, A, B, C, D, z, delta_bias)
    walks = walks or (Traversal.sequence(u.shape[2]),)
    directions = len(walks)
    inputs = [u, delta, A, B, C, D, z, delta_bias]
    dtype = u.dtype
    for other in (delta.dtype, B.dtype, C.dtype):
        dtype = dtype if other == dtype else torch.promote_types(dtype, other)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    differentiated = any(x is not None and x.requires_grad for x in inputs)
    save_states = torch.is_grad_enabled() and (differentiated or transformed())  # vmap hides what requires a gradient
    y, _ = torch.ops.vision_ssm.selective_scan(
        _cast(u, dtype),
        _cast(delta, dtype),
        _cast(A, state_dtype),
        _cast(B, dtype),
        _cast(C, dtype),
        None if D is None else _per_direction(_cast(D, state_dtype), directions),
        None if z is None else _cast(z, dtype),
        None if delta_bias is None else _per_direction(_cast(delta_bias, state_dtype), directions),
        flatten(walks),
        delta_softplus,
        merge,
        save_states,
        backend or AUTO,
    )
    return _cast(y, u.dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)`` without its price where there is nothing to do: a scan has nine tensors."""
    return x if x.dtype == dtype else x.to(dtype)


def _per_direction(parameter: Tensor, directions: int) -> Tensor:
    return parameter if parameter.shape[0] == directions else parameter.expand(directions, -1)


def _check_shapes(walks: int, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor | None) -> None:
    """Raise ShapeError, naming the tensor, unless every shape follows from those of u, A and B."""
    D, z, delta_bias = rest
    check_tensors(
        "selective_scan",
        u,
        *("D", "z", "delta_bias"),
        **{"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias},
    )
    if u.dim() != 4 or A.dim() != 3 or B.dim() != 4:
        raise ShapeError(
            "selective_scan expects u [B, K or 1, L, C], A [K, C, N] and B [B, K or 1, L, N], "
            f"got u {_show(u)}, A {_show(A)}, B {_show(B)}"
        )
    batch, _, tokens, _ = u.shape
    directions, channels, states = A.shape
    if directions < 1 or states < 1:
        raise ShapeError(f"A needs at least one direction and at least one state, got {_show(A)}")
    if walks != directions:
        raise ShapeError(f"A has {directions} directions, but {walks} traversals came: pass one for each")
    several = "1" if directions == 1 else f"{directions} or 1"
    per_direction = {"u": (u, channels), "delta": (delta, channels), "B": (B, states), "C": (C, states)}
    for name, (x, last) in per_direction.items():
        if x.dim() != 4 or x.shape[1] not in (1, directions) or (x.shape[0], *x.shape[2:]) != (batch, tokens, last):
            raise ShapeError(f"{name} must be [{batch}, {several}, {tokens}, {last}] to fit u and A, got {_show(x)}")
    for name, parameter in {"D": D, "delta_bias": delta_bias}.items():
        if parameter is not None and (
            parameter.dim() != 2 or parameter.shape[0] not in (1, directions) or parameter.shape[1] != channels
        ):
            raise ShapeError(f"{name} must be [{several}, {channels}], got {_show(parameter)}")
    if z is not None and tuple(z.shape) != (batch, tokens, channels):
        raise ShapeError(f"z must be [{batch}, {tokens}, {channels}], got {_show(z)}")


def _show(x: Tensor) -> str:
    return str(list(x.shape))


def _call(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    walks: Sequence[int],
    delta_softplus: bool,
    merge: bool,
) -> ScanCall:
    _check_shapes(len(walks) // WORDS, u, delta, A, B, C, D, z, delta_bias)
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    for dtype, tensors in ((u.dtype, (delta, B, C, z)), (state_dtype, (A, D, delta_bias))):
        for x in tensors:
            if x is not None and x.dtype != dtype:
                raise ShapeError(
                    "vision_ssm::selective_scan takes u, delta, B, C and z of one dtype, and A, D and delta_bias in "
                    f"{state_dtype}, got {x.dtype} beside {u.dtype}; vision_ssm.ops.selective_scan converts them"
                )
    for x in (D, delta_bias):
        if x is not None and x.shape != A.shape[:2]:
            raise ShapeError(f"vision_ssm::selective_scan takes D and delta_bias {_show(A[..., 0])}, got {_show(x)}")
    traversals = checked_traversals(tuple(walks), u.shape[2])
    return ScanCall(u, delta, A, B, C, D, z, delta_bias, traversals, delta_softplus, merge)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, save_states, backend = args
    call = _call(*inputs)
    with without_autocast(call.u.device):
        y, states = choose("scan", call.u.device, call.u.dtype, backend).functions.forward(call, save_states)
    # Flat: a symbolic number of chunks as an axis would make torch.export rule out sequences of a single chunk.
    return y, states.flatten()


def _backward(grad: Tensor, states: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *inputs, backend = args
    call = _call(*inputs)
    saved = saved_states_shape(call)
    if states.numel() != math.prod(saved) or grad.shape != call.output_shape() or grad.dtype != call.u.dtype:
        raise ShapeError(
            f"vision_ssm::selective_scan_backward takes states of {saved} and a gradient {list(call.output_shape())} "
            f"in {call.u.dtype}, got {_show(states)} and {_show(grad)} in {grad.dtype}"
        )
    states = states.view(saved)
    with without_autocast(call.u.device):
        gradients = choose("scan", call.u.device, call.u.dtype, backend).functions.backward(call, states, grad)
    return tuple(call.A.new_empty(0) if x is None else x for x in gradients)


def _composite(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, _, backend = args
    call = _call(*inputs)
    choose("scan", call.u.device, call.u.dtype, backend)  # what cannot run is refused here too
    with without_autocast(call.u.device):
        return composite.forward(call), call.A.new_empty(0)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    u, _, A, *_, walks, _, merge, save_states, _ = args
    batch, _, tokens, channels = u.shape
    directions = () if merge else (A.shape[0],)
    states = A.new_empty(0)
    if save_states:
        longest: int | torch.SymInt = 0
        for at in range(0, len(walks), WORDS):
            _, inner_count, _, _, length, reset, *_ = walks[at : at + WORDS]
            longest = torch.sym_max(longest, chunk_count(length, inner_count, reset))
        states = A.new_empty(batch * A.shape[0] * longest * A.shape[2] * channels)
    return u.new_empty((batch, *directions, tokens, channels)), states


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    tensors, absent = args[2:10], args[4].new_empty(0)
    return tuple(absent if x is None else x.new_empty(x.shape) for x in tensors)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, walks, delta_softplus, merge, save_states, backend = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.save_states = save_states
    ctx.rest = (walks, delta_softplus, merge, backend)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    states, *tensors = ctx.saved_tensors
    if grad is None:
        return (None,) * (len(tensors) + 5)
    if not ctx.save_states:
        raise BackendError(
            "vision_ssm::selective_scan ran with save_states=False and has no gradient; "
            "call vision_ssm.ops.selective_scan, or pass save_states=True"
        )
    gradients = torch.ops.vision_ssm.selective_scan_backward(grad, states, *tensors, *ctx.rest)
    present = [None if x is None else gradient for x, gradient in zip(tensors, gradients, strict=True)]
    return (*present, *(None,) * 5)


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "SymInt[] walks, bool delta_softplus, bool merge"
)
register(
    "selective_scan",
    f"({_ARGUMENTS}, bool save_states, str backend) -> (Tensor, Tensor)",
    f"(Tensor grad, Tensor states, {_ARGUMENTS}, str backend) -> (" + ", ".join(["Tensor"] * 8) + ")",
    Operator(_forward, _backward, _forward_fake, _backward_fake, _setup_context, _autograd, _composite),
)
