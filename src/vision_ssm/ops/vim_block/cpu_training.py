"""Training through a Vim block on the CPU: what the forward keeps, and a backward that recomputes the rest."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.native import KernelCall, TensorArgument, denormals_flushed, mirrors
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.transforms import has_tangent, holds_many
from vision_ssm.ops.vim_block import cpu
from vision_ssm.ops.vim_block.contract import WEIGHTS, VimBlock
from vision_ssm.ops.vim_block.cpu import BlockArgument, Kept
from vision_ssm.ops.vim_block.recycled import scratch

__all__ = ["train"]


def train(x: Tensor, block: VimBlock, composite: Callable[[Tensor, VimBlock], Tensor]) -> Tensor:
    """Return the stream [B, L, D] after the block, differentiable once.

    ``composite`` is the same in operations that transforms of torch see through: where one is around the backward pass
    alone, it goes that way.
    """
    half = cpu.multiplies_bfloat16(block)  # products take bfloat16, in both directions
    result: Tensor = _Trained.apply(x, block.holding([None] * len(WEIGHTS)), half, composite, *block.tensors())
    return result


@mirrors("vssm_vim_block_gradients")
class _BlockGradients(ctypes.Structure):
    _fields_ = (
        ("branch", BlockArgument),
        *((n, TensorArgument) for n in ("stream", "grad", "dstream", "normed", "gated", "dxz")),
        ("groups", ctypes.c_int64),
        *((n, ctypes.c_void_p) for n in ("parameters", "norm_parameters")),
    )


class _Trained(torch.autograd.Function):
    """The block as one node.

    Kept for the backward pass, in units of x at the sizes of Vim-Ti: x, the scan's result 2, the states at chunk
    boundaries 2, what x_proj yields 0.5; of small images what in_proj yields, 4.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: VimBlock, half: bool, composite: Any, *tensors: Tensor | None) -> Tensor:
        block = form.holding(tensors)
        keep = Kept.empty(x, block.ssm, xz=x.shape[1] <= MOST_KEPT_TOKENS)
        ctx.form, ctx.half, ctx.composite = form, half, composite
        ctx.save_for_backward(x, *keep, *tensors)
        return cpu.forward(x, block, half, keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or has_tangent(grad):  # create_graph
            raise BackendError(
                "the 'cpu' backend differentiates a Vim block once; create_graph=True (a gradient of a gradient) is "
                "not supported. torch.func (grad, jvp, hessian) around all of it gives derivatives of any order"
            )
        if holds_many(grad):
            return _through_composite(ctx, grad)
        # The backward pass may be called under autocast though the forward pass was not.
        with torch.autocast("cpu", enabled=False), denormals_flushed():
            return _backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, sums, xz, states, projected, *tensors = ctx.saved_tensors
    block = ctx.form.holding(tensors)
    found = _differentiate(x, grad, Kept(sums, xz, states, projected), block, ctx.half)
    _, _, _, _, *needed = ctx.needs_input_grad
    wanted = dict(zip(WEIGHTS, needed, strict=True))
    gradients = block._replace(
        norm=block.norm._replace(weight=found.norm_weight, bias=None if block.norm.bias is None else found.norm_bias),
        in_proj=_over_tokens(found.dxz, found.normed, ctx.half) if wanted["in_proj"] else None,
        ssm=found.ssm,
        out_proj=_over_tokens(grad.flatten(0, 1), found.gated, ctx.half) if wanted["out_proj"] else None,
    )
    return found.stream, None, None, None, *gradients.tensors()


def _through_composite(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Go back from a gradient that is many in one (``is_grads_batched``, ``vmap`` around the backward pass)."""
    x, _, _, _, _, *tensors = ctx.saved_tensors
    given = [x, *tensors]
    wanted = [n for n, needed in enumerate((ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])) if needed]

    def block(*learnt: Tensor) -> Tensor:
        stream, *weights = [dict(zip(wanted, learnt, strict=True)).get(n, t) for n, t in enumerate(given)]
        result: Tensor = ctx.composite(stream, ctx.form.holding(weights))
        return result

    with torch.autocast("cpu", enabled=False):
        _, go_back, *_ = torch.func.vjp(block, *(given[n] for n in wanted))
        found = dict(zip(wanted, go_back(grad), strict=True))
    stream, *weights = (found.get(n) for n in range(len(given)))
    return stream, None, None, None, *weights


def _over_tokens(given: Tensor, taken: Tensor, half: bool) -> Tensor:
    """Return the gradient [M, N] of a matrix that makes what has the gradient ``given`` [T, M] of ``taken`` [T, N].

    Where the kernel's products take bfloat16 this one does, and its result is rounded to it, as under autocast.
    """
    if half and native.instruction_set() == "avx512bf16":
        return (given.to(torch.bfloat16).t() @ taken.to(torch.bfloat16)).float()
    return given.t() @ taken


class _Gradients(NamedTuple):
    """Gradients of a block's stream and of what it learns but for in_proj and out_proj, and what those two need.

    ``normed`` [B * L, D] is what in_proj takes, ``gated`` [B * L, C] what out_proj takes, times the block's scale,
    ``dxz`` [B * L, 2C] the gradient of what in_proj yields. The three are overwritten by the next call in this thread.
    """

    stream: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    ssm: SsmWeights
    normed: Tensor
    gated: Tensor
    dxz: Tensor


def _differentiate(stream: Tensor, grad: Tensor, keep: Kept, block: VimBlock, half: bool) -> _Gradients:
    """Go back through a block from the gradient of its result [B, L, D]; ``keep`` is what the forward pass left."""
    weights = block.ssm
    (batch, tokens, width), (directions, channels, states) = stream.shape, weights.A_log.shape
    if keep.sums.shape[0] != batch or block.gamma is not None:
        raise ShapeError(f"the sums kept of {keep.sums.shape[0]} images are not those of {batch}, or there is a gamma")
    described = cpu.describe(stream, [block], half)
    kept: list[Any] = [described, keep]
    call = _BlockGradients(branch=described.blocks[0])
    ssm, threads, rank = call.branch.ssm, torch.get_num_threads(), weights.dt_proj_weight.shape[2]
    ssm.batch, ssm.threads, ssm.isa = batch, threads, native.ISA
    cpu.leave_in(call.branch, keep, kept)
    call.groups = threads if batch >= threads else 1
    sizes = [states, 1, 1, ssm.taps, 1, rank + 2 * states, rank]
    parts = torch.zeros(call.groups, directions, sum(sizes), channels, dtype=torch.float32, device="cpu")
    norm_parts = torch.zeros(threads, 2, width, dtype=torch.float32, device="cpu")
    call.parameters, call.norm_parameters = parts.data_ptr(), norm_parts.data_ptr()
    dstream = torch.empty(stream.shape, dtype=torch.float32, device="cpu")
    normed, gated, dxz = (
        scratch.take(name, batch, tokens, size)
        for name, size in (("normed", width), ("gated", channels), ("dxz", 2 * channels))
    )
    kernel = KernelCall(call, kept)
    shape = (batch, 1, tokens, width)
    kernel.set(shape, torch.float32, stream=stream, grad=grad, dstream=dstream, normed=normed)
    kernel.set((batch, 1, tokens, channels), torch.float32, gated=gated)
    kernel.set((batch, 1, tokens, 2 * channels), torch.float32, dxz=dxz)
    kernel.run("vssm_vim_block_backward")
    a_log, *shared = torch.split_with_sizes(parts.sum(0), sizes, dim=1)
    if weights.D.shape[0] == 1 < directions:  # one set of parameters for all directions
        shared = [x.sum(0, keepdim=True) for x in shared]
    skip, dt_bias, taps, conv_bias, x_proj, dt_proj = shared
    dssm = SsmWeights(
        A_log=a_log.transpose(1, 2),
        D=skip[:, 0],
        x_proj_weight=x_proj,
        dt_proj_weight=dt_proj.transpose(1, 2),
        dt_proj_bias=dt_bias[:, 0],
        conv_weight=taps.transpose(1, 2),
        conv_bias=conv_bias[:, 0],
    )
    dweight, dbias = norm_parts.sum(0)
    return _Gradients(dstream, dweight, dbias, dssm, normed.flatten(0, 1), gated.flatten(0, 1), dxz.flatten(0, 1))


# Of an image for which what in_proj yields is kept, not made again. That would take some 3 % of a step, which counts
# where images are small, while large ones are what memory is short for.
MOST_KEPT_TOKENS = 512
