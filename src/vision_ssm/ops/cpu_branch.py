"""Training through a Vim block on the CPU: what the forward keeps, and a backward that recomputes the rest."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vision_ssm.errors import BackendError
from vision_ssm.ops import cpu_ssm
from vision_ssm.ops.cpu import CpuBackend
from vision_ssm.ops.cpu_ssm import Branch, BranchWeights, Kept, NormWeights, SsmWeights
from vision_ssm.ops.native import denormals_flushed

__all__ = ["train"]


@dataclass(frozen=True)
class _Plan:
    """What is not a tensor."""

    norm: str
    eps: float
    scale: float
    walks_reversed: tuple[bool, ...]
    looks_back: tuple[bool, ...]
    backend: CpuBackend

    def branch(self, weights: BranchWeights) -> Branch:
        return Branch(weights, self.scale, self.walks_reversed, self.looks_back)


def train(x: Tensor, branch: Branch, backend: CpuBackend) -> Tensor:
    """Return the stream [B, L, D] after the block, differentiable once."""
    weights, norm = branch.weights, branch.weights.norm
    plan = _Plan(norm.kind, norm.eps, branch.scale, branch.walks_reversed, branch.looks_back, backend)
    result: Tensor = _TrainedBranch.apply(
        x, plan, norm.weight, norm.bias, weights.in_proj, weights.out_proj, *weights.ssm
    )
    return result


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
_scratch = _Scratch()


class _TrainedBranch(torch.autograd.Function):
    """The block as one node. Rows are [B * L]; directions are outermost where each has its own.

    Kept for the backward pass, in units of x at the sizes of Vim-Ti: x, the scan's result 2, the states at chunk
    boundaries 2, what x_proj yields 0.5.
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
        keep = Kept.empty(x, weights)
        norm = NormWeights(plan.norm, plan.eps, norm_weight, norm_bias)
        branch = plan.branch(BranchWeights(norm, in_proj, weights, out_proj))
        out = cpu_ssm.column(x, [branch], plan.backend.isa, keep)
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
    x, sums, states, projected, norm_weight, norm_bias, in_proj, out_proj, *ssm = ctx.saved_tensors
    norm = NormWeights(plan.norm, plan.eps, norm_weight, norm_bias)
    branch = plan.branch(BranchWeights(norm, in_proj, SsmWeights(*ssm), out_proj))
    batch, tokens, width = x.shape
    inner, count = sums.shape[-1], batch * tokens
    rows, grad_rows = x.reshape(-1, width), grad.reshape(-1, width)
    normed, statistics = _normalise(rows, norm)
    xz, dxz = (_scratch.take(name, count, 2 * inner) for name in ("xz", "dxz"))
    gated, dgated = (_scratch.take(name, count, inner) for name in ("gated", "dgated"))
    torch.mm(normed, in_proj.t(), out=xz)
    torch.mm(grad_rows, out_proj * plan.scale, out=dgated)

    def of_images(rows: Tensor) -> Tensor:
        return rows.view(batch, tokens, -1)

    dssm = cpu_ssm.inner_backward(
        *(of_images(xz), of_images(dgated), Kept(sums, states, projected), branch, plan.backend.isa),
        gated=of_images(gated),
        dxz=of_images(dxz),
    )
    dout_proj = (grad_rows.t() @ gated).mul_(plan.scale) if ctx.needs_input_grad[5] else None
    din_proj = dxz.t() @ normed if ctx.needs_input_grad[4] else None
    dx, dnorm_weight, dnorm_bias = _normalise_backward(dxz @ in_proj, rows, statistics, norm)
    dx += grad_rows
    return dx.view_as(x), None, dnorm_weight, dnorm_bias, din_proj, dout_proj, *dssm


def _normalise(rows: Tensor, norm: NormWeights) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the normalised rows [M, D] and their statistics [M, 1]: mean, reciprocal deviation (RMS: the latter)."""
    if norm.kind == "layer":
        normed, mean, deviation = torch.native_layer_norm(rows, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        return normed, (mean, deviation)
    deviation = (
        torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[1]).add_(norm.eps).rsqrt_()
    )
    return (rows * deviation).mul_(norm.weight), (deviation,)


def _normalise_backward(
    grad: Tensor, rows: Tensor, statistics: tuple[Tensor, ...], norm: NormWeights
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of rows, weight and bias; ``grad`` is overwritten."""
    if norm.kind == "layer":
        everything = torch.ops.aten.native_layer_norm_backward(
            grad, rows, norm.weight.shape, *statistics, norm.weight, norm.bias, [True, True, norm.bias is not None]
        )
        return everything[0], everything[1], everything[2]
    unit = rows * statistics[0]
    dweight = (grad * unit).sum(0)
    grad *= norm.weight
    along = (grad * unit).mean(-1, keepdim=True)
    return torch.addcmul(grad, unit, along, value=-1).mul_(statistics[0]), dweight, None
