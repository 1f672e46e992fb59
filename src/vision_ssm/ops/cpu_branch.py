"""Training through a Vim block on the CPU: what the forward keeps, and a backward that recomputes the rest."""

from __future__ import annotations

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
    found = cpu_ssm.branch_backward(x, grad, Kept(sums, states, projected), branch, plan.backend.isa)
    din_proj = found.dxz.t() @ found.normed if ctx.needs_input_grad[4] else None
    dout_proj = (grad.flatten(0, 1).t() @ found.gated).mul_(plan.scale) if ctx.needs_input_grad[5] else None
    dnorm_bias = None if norm_bias is None else found.norm_bias
    return found.stream, None, found.norm_weight, dnorm_bias, din_proj, dout_proj, *found.ssm
