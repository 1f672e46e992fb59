"""The scan on GPUs in Triton: buffers, launches and sums; kernels are in ``triton_forward`` and ``triton_backward``.

Triton is loaded when a scan first runs here, never by an import.

Directions are programs of their own, which keeps their parallelism; where several of them write the same tokens, each
writes to memory of its own in float32 and a sum over the directions in their order follows. So are gradients that
several programs have a share in. Nothing is added atomically: the same call gives the same bits.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from vision_ssm.errors import BackendError
from vision_ssm.ops.gpu import on_device_of, processors
from vision_ssm.ops.scan.contract import CHUNK, ScanCall, ScanGradients, saved_states_shape
from vision_ssm.ops.scan.triton_schedule import Schedule, plan
from vision_ssm.ops.traversal import Cover, cover_of

__all__ = ["backward", "forward"]

MOST_STATES = 64
MOST_TOKENS = 2**31 - CHUNK  # the kernels count steps in 32 bits; offsets in memory have 64
SEGMENT_CHUNKS: int | None = None  # cut every walk into segments of as many chunks instead of choosing by the shape


def forward(call: ScanCall, save_states: bool) -> tuple[Tensor, Tensor]:
    """Run the forward kernel, in one pass or two (see ``triton_schedule.plan``), and sum the directions."""
    call = _checked(call)
    states = call.A.new_empty(saved_states_shape(call)) if save_states else call.A.new_empty(0)
    cover, directions = cover_of(call.traversals, call.tokens), len(call.traversals)
    y = call.output()
    if y.numel() == 0:
        return y, states.zero_()
    apart = call.merge and directions > 1 and cover != Cover.ONCE
    parts = call.A.new_empty((directions, *y.shape)).transpose(0, 1) if apart else y.view(call.batch, -1, *y.shape[-2:])
    if cover == Cover.SOME or (cover == Cover.ONCE and not call.merge):
        parts.zero_()
    with on_device_of(call.u):
        launch = _Launch(call, plan(call, processors(call.u), backward=False, segment_chunks=SEGMENT_CHUNKS))
        launch.forward(parts, states if save_states else None, gated=not apart)
        if apart:
            launch.sum_directions(parts, y)
    return y, states


def backward(call: ScanCall, states: Tensor, grad: Tensor) -> ScanGradients:
    """Run the backward kernel, in one pass or two, and sum what programs and directions hold of each gradient."""
    call = _checked(call)
    if call.batch == 0 or call.tokens == 0 or call.channels == 0:
        return _zeros(call)
    with on_device_of(call.u):
        schedule = plan(call, processors(call.u), backward=True, segment_chunks=SEGMENT_CHUNKS)
        found = _Gradients(call, schedule)
        _Launch(call, schedule).backward(states, grad if not call.merge else grad[:, None], found)
        return found.summed(call)


class _Gradients:
    """The backward kernel's results: what programs and directions share is apart until it is summed.

    A gradient of u, delta or z that directions share has a float32 part for each, unless their walks visit disjoint
    tokens. Gradients of B and C have a part for each group of channels, those of the parameters for each segment.
    """

    def __init__(self, call: ScanCall, schedule: Schedule) -> None:
        cover = cover_of(call.traversals, call.tokens)
        directions, lead = len(call.traversals), (call.batch, schedule.segments, len(call.traversals))

        def fresh(x: Tensor, own: bool, groups: tuple[int, ...] = ()) -> Tensor:
            """[groups, B, 1 or K, L, last] for x [B, K|1, L, last]; zeros where walks may leave tokens out."""
            apart = directions if own or cover != Cover.ONCE else 1
            dtype = torch.float32 if groups or (not own and apart > 1) else x.dtype
            shape = (*groups, x.shape[0], apart, *x.shape[2:])
            filled = cover == Cover.EACH or (cover == Cover.ONCE and not own)
            return (x.new_empty if filled else x.new_zeros)(shape, dtype=dtype)

        self.u, self.delta = (fresh(x, x.shape[1] > 1) for x in (call.u, call.delta))
        self.z = None if call.z is None else fresh(call.z[:, None], own=False)
        self.B, self.C = (fresh(x, x.shape[1] > 1, (schedule.groups,)) for x in (call.B, call.C))
        # Every program writes its parts of these, nothing where its segment is beyond the walk's end.
        self.A = call.A.new_empty((*lead, call.channels, call.states))
        self.D, self.bias = (call.A.new_empty((*lead, call.channels)) for _ in range(2))

    def summed(self, call: ScanCall) -> ScanGradients:
        """Sum the parts in the order of their memory."""

        def joined(x: Tensor, like: Tensor) -> Tensor:
            return (x if x.shape[1] == like.shape[1] else x.sum(1, keepdim=True)).to(like.dtype)

        return ScanGradients(
            joined(self.u, call.u),
            joined(self.delta, call.delta),
            self.A.sum((0, 1)),
            joined(self.B.sum(0), call.B),
            joined(self.C.sum(0), call.C),
            None if call.D is None else self.D.sum((0, 1)),
            None if self.z is None or call.z is None else joined(self.z, call.z[:, None])[:, 0],
            None if call.delta_bias is None else self.bias.sum((0, 1)),
        )


def _zeros(call: ScanCall) -> ScanGradients:
    """The gradients of a scan over nothing."""
    inputs = (call.u, call.delta, call.A, call.B, call.C, call.D, call.z, call.delta_bias)
    return ScanGradients(*(None if x is None else x.new_zeros(x.shape) for x in inputs))  # type: ignore[arg-type]


def _checked(call: ScanCall) -> ScanCall:
    """Return the call with its parameters contiguous. Raises BackendError for what the kernels cannot count."""
    if call.states > MOST_STATES:
        raise BackendError(
            f"scan backend 'triton' holds up to {MOST_STATES} states per channel, and this scan has {call.states}; "
            "name backend='chunked' for it, or set VISION_SSM_BACKEND=chunked"
        )
    if call.tokens >= MOST_TOKENS:
        raise BackendError(
            f"scan backend 'triton' counts fewer than {MOST_TOKENS} tokens per image, and this scan has {call.tokens}; "
            "name backend='chunked' for it, or set VISION_SSM_BACKEND=chunked"
        )
    return replace(
        call,
        A=call.A.contiguous(),
        D=None if call.D is None else call.D.contiguous(),
        delta_bias=None if call.delta_bias is None else call.delta_bias.contiguous(),
    )


class _Launch:
    """The launches of one pass, with what they share."""

    def __init__(self, call: ScanCall, schedule: Schedule) -> None:
        from vision_ssm.ops.scan import triton_backward, triton_forward, triton_parts

        self.call, self.schedule = call, schedule
        self._parts, self._forward, self._backward = triton_parts, triton_forward, triton_backward
        self.walks = _walk_table(triton_parts, call)
        self.longest = saved_states_shape(call)[2]
        self.lines = call.batch * len(call.traversals)
        self.constants = {
            "STATES": call.states,
            "PADDED": schedule.padded,
            "BLOCK": schedule.block,
            "num_warps": 1,
            "enable_fp_fusion": True,  # triton 3.9 warns where it is left to the default
        }

    @property
    def grid(self) -> tuple[int]:
        return (self.lines * self.schedule.segments * self.schedule.blocks,)

    def forward(self, y: Tensor, saved: Tensor | None, *, gated: bool) -> None:
        """Write y [B, K|1, L, C], gated or not, and the chunks' first states."""
        heads = None
        if self.schedule.two_pass:
            heads, sums = self._buffers()
            self._scan(y, None, heads, sums, gated=False, output=False)
            self._link(heads, sums, reverse=False)
        self._scan(y, saved, heads, None, gated=gated, output=True)

    def sum_directions(self, parts: Tensor, y: Tensor) -> None:
        """Write y [B, L, C], gated, from parts [B, K, L, C] whose directions are outermost in memory."""
        call, rows, block = self.call, 8, 128
        z = call.z
        grid = (-(-call.batch * call.tokens // rows) * -(-call.channels // block),)
        self._parts.sum_directions[grid](
            parts,
            z,
            y,
            *((0, 0, 0) if z is None else z.stride()),
            call.batch * call.tokens,
            call.tokens,
            call.channels,
            len(call.traversals),
            ROWS=rows,
            BLOCK=block,
            enable_fp_fusion=True,
        )

    def backward(self, saved: Tensor, grad: Tensor, found: _Gradients) -> None:
        """Write every program's share of the gradients for grad [B, K|1, L, C]."""
        call, schedule = self.call, self.schedule
        directions = len(call.traversals)
        z = () if call.z is None else call.z.stride()
        tails = None
        if schedule.two_pass:
            tails, sums = self._buffers()
            self._backward.adjoint_ends[self.grid](
                *(call.delta, call.C, call.z, grad, call.A, call.delta_bias, self.walks, tails, sums),
                *(stride for x in (call.delta, call.C) for stride in _strides(x)),
                *(z or (0, 0, 0)),
                *_strides(grad),
                *(directions, call.channels, schedule.segments, schedule.segment_chunks, 1),
                **self.constants,
                SOFTPLUS=call.delta_softplus,
            )
            self._link(tails, sums, reverse=True)
        kept = call.A.new_empty((schedule.programs, CHUNK // self._backward.GROUP, schedule.padded, schedule.block))
        self._backward.scan_adjoint[(schedule.programs,)](
            *(call.u, call.delta, call.B, call.C, call.z, grad, call.A, call.D, call.delta_bias, self.walks, saved),
            *(tails, kept, found.u, found.delta, found.z, found.B, found.C, found.A, found.D, found.bias),
            *(stride for x in (call.u, call.delta, call.B, call.C) for stride in _strides(x)),
            *(z or (0, 0, 0)),
            *_strides(grad),
            *(stride for x in (found.u, found.delta) for stride in _strides(x)[:3]),
            *((0, 0, 0) if found.z is None else _strides(found.z)[:3]),
            *(stride for x in (found.B, found.C) for stride in (x.stride(0), *_strides(x[0])[:2])),
            *(directions, call.channels, self.longest, schedule.segments, schedule.segment_chunks),
            *(schedule.groups, self.lines * schedule.segments * schedule.groups, 1),
            **self.constants,
            SOFTPLUS=call.delta_softplus,
        )

    def _buffers(self) -> tuple[Tensor, Tensor]:
        call, segments = self.call, self.schedule.segments
        lead = (call.batch, len(call.traversals), segments)
        return call.A.new_empty((*lead, call.states, call.channels)), call.A.new_empty((*lead, call.channels))

    def _scan(
        self, y: Tensor, saved: Tensor | None, heads: Tensor | None, sums: Tensor | None, *, gated: bool, output: bool
    ) -> None:
        call, schedule = self.call, self.schedule
        z = call.z if gated else None
        self._forward.scan_segments[self.grid](
            *(
                call.u,
                call.delta,
                call.B,
                call.C,
                z,
                call.A,
                call.D,
                call.delta_bias,
                self.walks,
                y,
                saved,
                heads,
                sums,
            ),
            *(stride for x in (call.u, call.delta, call.B, call.C) for stride in _strides(x)),
            *((0, 0, 0) if z is None else z.stride()),
            *_strides(y)[:3],
            len(call.traversals),
            call.channels,
            self.longest,
            schedule.segments,
            schedule.segment_chunks,
            1,
            **self.constants,
            SOFTPLUS=call.delta_softplus,
            OUTPUT=output,
        )

    def _link(self, ends: Tensor, sums: Tensor, *, reverse: bool) -> None:
        call, schedule = self.call, self.schedule
        self._parts.link_segments[(self.lines * schedule.blocks,)](
            *(ends, sums, call.A, self.walks),
            len(call.traversals),
            call.channels,
            schedule.segments,
            schedule.segment_chunks,
            **self.constants,
            REVERSE=reverse,
        )


def _strides(x: Tensor) -> tuple[int, int, int, int]:
    """Strides of [B, K|1, L, last]; none between directions where they share the tensor."""
    batch, direction, token, last = x.stride()
    return batch, direction if x.shape[1] > 1 else 0, token, last


def _walk_table(parts: ModuleType, call: ScanCall) -> Tensor:
    """Return the walks in the kernels' form, [K, words], on the tensors' device.

    On a GPU a small launch per walk writes it anew for every call. A copy from the host would wait for it or not be
    captured in a CUDA graph, and a table kept between calls might lie in the memory pool of a graph that is gone.
    """
    words = [parts.walk_words(walk) for walk in call.traversals]
    if not call.u.is_cuda:
        return torch.tensor(words, dtype=torch.int32)
    table = torch.empty((len(words), parts.WORDS), dtype=torch.int32, device=call.u.device)
    for k, row in enumerate(words):
        parts.fill_walk[(1,)](table, k, *row, enable_fp_fusion=True)
    return table
