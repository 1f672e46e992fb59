"""Training through a Vim block on the CPU: what the forward keeps, and a backward that recomputes the rest."""

from __future__ import annotations

import ctypes
import math
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import BackendError
from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NormWeights
from vision_ssm.ops.native import KernelCall, TensorArgument, denormals_flushed, mirrors
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.vim_block import cpu as cpu_block
from vision_ssm.ops.vim_block.cpu import Branch, BranchArgument, BranchWeights, Kept

__all__ = ["train"]


@dataclass(frozen=True)
class _Plan:
    """What is not a tensor."""

    norm: str
    eps: float
    scale: float
    walks_reversed: tuple[bool, ...]
    looks_back: tuple[bool, ...]
    half: bool  # products take bfloat16, in both directions

    def branch(self, weights: BranchWeights) -> Branch:
        return Branch(weights, self.scale, self.walks_reversed, self.looks_back)

    def over_tokens(self, given: Tensor, taken: Tensor) -> Tensor:
        """Return the gradient [M, N] of a matrix that makes what has the gradient ``given`` [T, M] of ``taken`` [T, N].

        Where the kernel's products take bfloat16 this one does, and its result is rounded to it, as under autocast.
        """
        if self.half and native.instruction_set() == "avx512bf16":
            return (given.to(torch.bfloat16).t() @ taken.to(torch.bfloat16)).float()
        return given.t() @ taken


def train(x: Tensor, branch: Branch) -> Tensor:
    """Return the stream [B, L, D] after the block, differentiable once."""
    weights, norm = branch.weights, branch.weights.norm
    half = cpu_block.multiplies_bfloat16(weights)
    plan = _Plan(norm.kind, norm.eps, branch.scale, branch.walks_reversed, branch.looks_back, half)
    result: Tensor = _TrainedBranch.apply(
        x, plan, norm.weight, norm.bias, weights.in_proj, weights.out_proj, *weights.ssm
    )
    return result


@mirrors("vssm_vim_block_gradients")
class _BranchGradients(ctypes.Structure):
    _fields_ = (
        ("branch", BranchArgument),
        *((n, TensorArgument) for n in ("stream", "grad", "dstream", "normed", "gated", "dxz")),
        ("groups", ctypes.c_int64),
        *((n, ctypes.c_void_p) for n in ("parameters", "norm_parameters")),
    )


class _TrainedBranch(torch.autograd.Function):
    """The block as one node.

    Kept for the backward pass, in units of x at the sizes of Vim-Ti: x, the scan's result 2, the states at chunk
    boundaries 2, what x_proj yields 0.5; of small images what in_proj yields, 4.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plan: _Plan,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        in_proj: Tensor,
        out_proj: Tensor,
        *ssm: Tensor,
    ) -> Tensor:
        weights = SsmWeights(*ssm)
        keep = Kept.empty(x, weights, xz=x.shape[1] <= MOST_KEPT_TOKENS)
        norm = NormWeights(plan.norm, plan.eps, norm_weight, norm_bias)
        branch = plan.branch(BranchWeights(norm, in_proj, weights, out_proj))
        out = cpu_block.column(x, cpu_block.describe(x, [branch], plan.half), keep=keep)
        ctx.plan = plan
        ctx.save_for_backward(x, *keep, norm_weight, norm_bias, in_proj, out_proj, *ssm)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise BackendError(
                "the 'cpu' backend differentiates a Vim block once; create_graph=True (a gradient of a gradient) is "
                "not supported"
            )
        # The backward pass may be called under autocast though the forward pass was not.
        with torch.autocast("cpu", enabled=False), denormals_flushed():
            return _backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    plan: _Plan = ctx.plan
    x, sums, xz, states, projected, norm_weight, norm_bias, in_proj, out_proj, *ssm = ctx.saved_tensors
    norm = NormWeights(plan.norm, plan.eps, norm_weight, norm_bias)
    branch = plan.branch(BranchWeights(norm, in_proj, SsmWeights(*ssm), out_proj))
    found = _differentiate(x, grad, Kept(sums, xz, states, projected), branch, plan)
    din_proj = plan.over_tokens(found.dxz, found.normed) if ctx.needs_input_grad[4] else None
    dout_proj = plan.over_tokens(grad.flatten(0, 1), found.gated) if ctx.needs_input_grad[5] else None
    dnorm_bias = None if norm_bias is None else found.norm_bias
    return found.stream, None, found.norm_weight, dnorm_bias, din_proj, dout_proj, *found.ssm


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


def _differentiate(stream: Tensor, grad: Tensor, keep: Kept, branch: Branch, plan: _Plan) -> _Gradients:
    """Go back through a block from the gradient of its result [B, L, D]; ``keep`` is what the forward pass left."""
    weights = branch.weights.ssm
    (batch, tokens, width), (directions, channels, states) = stream.shape, weights.A_log.shape
    described = cpu_block.describe(stream, [branch], plan.half)
    kept: list[object] = [described, keep]
    call = _BranchGradients(branch=described.blocks[0])
    ssm, threads, rank = call.branch.ssm, torch.get_num_threads(), weights.dt_proj_weight.shape[2]
    ssm.batch, ssm.threads, ssm.isa = batch, threads, native.ISA
    cpu_block.leave_in(call.branch, keep, kept)
    call.groups = threads if batch >= threads else 1
    sizes = [states, 1, 1, ssm.taps, 1, rank + 2 * states, rank]
    parts = torch.zeros(call.groups, directions, sum(sizes), channels, dtype=torch.float32, device="cpu")
    norm_parts = torch.zeros(threads, 2, width, dtype=torch.float32, device="cpu")
    call.parameters, call.norm_parameters = parts.data_ptr(), norm_parts.data_ptr()
    dstream = torch.empty(stream.shape, dtype=torch.float32, device="cpu")
    normed, gated, dxz = (
        _scratch.take(name, batch, tokens, size)
        for name, size in (("normed", width), ("gated", channels), ("dxz", 2 * channels))
    )
    kernel = KernelCall(call, kept)
    kernel.set(stream=stream, grad=grad, dstream=dstream, normed=normed, gated=gated, dxz=dxz)
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


class _Scratch(threading.local):
    """Memory for what lives within one call, kept from block to block: the system clears every fresh page first."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return float32 memory of that shape; what an earlier taker of the name had is overwritten."""
        count = math.prod(shape)
        buffer = self._buffers.pop(name, None)
        if buffer is None or buffer.numel() < count:
            buffer = torch.empty(count, dtype=torch.float32, device="cpu")
        if count * 4 <= MOST_KEPT:
            self._buffers[name] = buffer
        return buffer[:count].view(shape)


MOST_KEPT = 2**25  # bytes per buffer
# Of an image for which what in_proj yields is kept, not made again. That would take some 3 % of a step, which counts
# where images are small, while large ones are what memory is short for.
MOST_KEPT_TOKENS = 512
_scratch = _Scratch()
