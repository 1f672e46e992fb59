"""Training through a Vim block on the CPU: what the forward keeps, and a backward that recomputes the rest."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import cpu_conv, cpu_ssm
from vision_ssm.ops.contract import ScanCall, ScanGradients
from vision_ssm.ops.cpu import CpuBackend
from vision_ssm.ops.cpu_ssm import Branch, BranchWeights, Kept, NormWeights, SsmWeights
from vision_ssm.ops.native import denormals_flushed
from vision_ssm.ops.traversal import Traversal

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

    def traversals(self, tokens: int) -> tuple[Traversal, ...]:
        return tuple(Traversal.sequence(tokens, reverse=back) for back in self.walks_reversed)


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

    Kept for the backward pass, in units of x: x, the scan's result 2, the states at chunk boundaries 2 at 16 states.
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
        branch = Branch(
            BranchWeights(norm, in_proj, weights, out_proj), plan.scale, plan.walks_reversed, plan.looks_back
        )
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
    x, y, states, norm_weight, norm_bias, in_proj, out_proj, *ssm = ctx.saved_tensors
    weights = SsmWeights(*ssm)
    batch, tokens, width = x.shape
    rows, grad_rows = x.reshape(-1, width), grad.reshape(-1, width)
    inner = y.shape[-1]
    dout_proj = None
    if ctx.needs_input_grad[5]:
        dout_proj = (grad_rows.t() @ y.view(grad_rows.shape[0], inner)).mul_(plan.scale)
    dy = torch.mm(grad_rows, out_proj * plan.scale, out=_scratch.take("dy", len(rows), inner))

    norm = NormWeights(plan.norm, plan.eps, norm_weight, norm_bias)
    normed, statistics = _normalise(rows, norm)
    xz = _project_in(normed, in_proj, x)
    inputs = _inputs(plan, xz, weights)
    sets = weights.dt_proj_weight.shape[0]
    dxz = _scratch.take("dxz", batch, tokens, 2 * inner)
    du, ddelta = (_scratch.take(name, sets, batch, tokens, inner).transpose(0, 1) for name in ("du", "ddelta"))
    scan = plan.backend.backward(
        inputs.call, states, dy.view(batch, tokens, inner), du=du, ddelta=ddelta, dz=dxz[..., inner:]
    )
    dx_proj, ddt_proj = _through_projections(inputs, scan, weights)
    _, dconv_weight, dconv_bias = cpu_conv.backward(
        scan.u,
        xz[..., :inner],
        *_taps(weights),
        plan.looks_back,
        True,
        plan.backend.isa,
        dx=dxz[..., :inner],
    )
    dxz_rows = dxz.view(-1, 2 * inner)
    din_proj = dxz_rows.t() @ normed if ctx.needs_input_grad[4] else None
    dx, dnorm_weight, dnorm_bias = _normalise_backward(dxz_rows @ in_proj, rows, statistics, norm)
    dx += grad_rows
    once = weights.D.shape[0] == 1  # one set of parameters for all directions
    dD, dbias = (x.sum(0, keepdim=True) if once and x is not None else x for x in (scan.D, scan.delta_bias))
    return (
        *(dx.view_as(x), None, dnorm_weight, dnorm_bias, din_proj, dout_proj),
        *(scan.A * inputs.call.A, dD, dx_proj, ddt_proj, dbias, dconv_weight, dconv_bias),
    )


def _taps(weights: SsmWeights) -> tuple[Tensor, Tensor]:
    if weights.conv_weight is None or weights.conv_bias is None:
        raise ShapeError("a block in one call needs the weight and the bias of its convolution, got None")
    return weights.conv_weight, weights.conv_bias


class _Inputs(NamedTuple):
    """What lies between in_proj and the scan: u and the projections as rows [P, B * L, ...], and the scan's call."""

    u: Tensor
    projected: Tensor
    call: ScanCall


def _project_in(normed: Tensor, in_proj: Tensor, x: Tensor) -> Tensor:
    xz = torch.mm(normed, in_proj.t(), out=_scratch.take("xz", normed.shape[0], in_proj.shape[0]))
    return xz.view(x.shape[0], x.shape[1], -1)


def _inputs(plan: _Plan, xz: Tensor, weights: SsmWeights) -> _Inputs:
    batch, tokens, inner = xz.shape[0], xz.shape[1], xz.shape[2] // 2
    directions, _, states = weights.A_log.shape
    sets, _, rank = weights.dt_proj_weight.shape
    count = batch * tokens
    rows = _scratch.take("u", sets, count, inner)
    u = rows.view(sets, batch, tokens, inner).transpose(0, 1)
    cpu_conv.forward(xz[..., :inner], *_taps(weights), plan.looks_back, True, plan.backend.isa, y=u)
    projected, delta = _scratch.take("projected", sets, count, rank + 2 * states), _scratch.take("delta", *rows.shape)
    torch.bmm(rows, weights.x_proj_weight.transpose(1, 2), out=projected)
    torch.bmm(projected[..., :rank], weights.dt_proj_weight.transpose(1, 2), out=delta)

    def of_images(x: Tensor) -> Tensor:
        return x.view(sets, batch, tokens, x.shape[-1]).transpose(0, 1)

    _, b, c = torch.split(projected, [rank, states, states], dim=-1)
    D, bias = (x.expand(directions, -1) for x in (weights.D, weights.dt_proj_bias))
    A, walks = -torch.exp(weights.A_log), plan.traversals(tokens)
    call = ScanCall(u, of_images(delta), A, of_images(b), of_images(c), D, xz[..., inner:], bias, walks, True, True)
    return _Inputs(rows, projected, call)


def _through_projections(inputs: _Inputs, scan: ScanGradients, weights: SsmWeights) -> tuple[Tensor, Tensor]:
    """Add to the gradient of u what comes through the projections; return those of x_proj and dt_proj."""
    rank = weights.dt_proj_weight.shape[2]
    du, ddelta, db, dc = (x.transpose(0, 1).flatten(1, 2) for x in (scan.u, scan.delta, scan.B, scan.C))
    dprojected = torch.cat([torch.bmm(ddelta, weights.dt_proj_weight), db, dc], dim=-1)
    du.baddbmm_(dprojected, weights.x_proj_weight)
    return torch.bmm(dprojected.transpose(1, 2), inputs.u), torch.bmm(
        ddelta.transpose(1, 2), inputs.projected[..., :rank]
    )


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
