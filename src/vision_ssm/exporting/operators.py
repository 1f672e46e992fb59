"""This library's operators in the terms that leave it: torch's own operations, and one recurrence for each kind.

    h[t] = exp(Δ[t] A) h[t-1] + B[t] (Δ[t] u[t])        y[t] = C[t] · h[t]                   scan_steps
    S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]ᵀ          o[t] = scale · S[t]ᵀ q[t]            gla_steps

Walks become index arithmetic on tokens (`vision_ssm.ops.traversal.followed` and ``written``), of sizes that may be
symbols. What is left is a recurrence along the first or second axis, which each format writes in its own way. The two
operators here stand for it within a program; they have no kernel and are never run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, library

from vision_ssm.errors import ConfigError
from vision_ssm.ops.conv import reference as convolution
from vision_ssm.ops.scan import composite
from vision_ssm.ops.scan.contract import ScanCall
from vision_ssm.ops.traversal import Traversal, followed, unflatten, written

__all__ = ["GLA_STEPS", "SCAN_STEPS", "GlaSteps", "ScanSteps", "decompositions", "lone_gla_steps", "lone_scan_steps"]

ScanSteps = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From Δ and Δ u [T, B, K, C], A [K, N, C], and B and C [T, B, K, N] to y [T, B, K, C]."""

GlaSteps = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
"""From q, k [B, T, H N], v [B, T, H V], log-gates [B, T, H N], H and the scale to o [B, T, H V]."""

NAMESPACE = "vision_ssm_export"

library.define(f"{NAMESPACE}::scan_steps", "(Tensor delta, Tensor added, Tensor A, Tensor B, Tensor C) -> Tensor")
library.define(
    f"{NAMESPACE}::gla_steps", "(Tensor q, Tensor k, Tensor v, Tensor log_gates, int heads, float scale) -> Tensor"
)
library.register_fake(f"{NAMESPACE}::scan_steps", lambda delta, *_: torch.empty_like(delta))
library.register_fake(f"{NAMESPACE}::gla_steps", lambda q, k, v, *_: torch.empty_like(v))

SCAN_STEPS = torch.ops.vision_ssm_export.scan_steps.default
GLA_STEPS = torch.ops.vision_ssm_export.gla_steps.default


def lone_scan_steps(*tensors: Tensor) -> Tensor:
    """Leave the recurrence of a scan as one operator in the program."""
    y: Tensor = SCAN_STEPS(*tensors)
    return y


def lone_gla_steps(*arguments: Any) -> Tensor:
    """Leave the recurrence of gated linear attention as one operator in the program."""
    o: Tensor = GLA_STEPS(*arguments)
    return o


def decompositions(scan_steps: ScanSteps, gla_steps: GlaSteps) -> dict[Any, Callable[..., Any]]:
    """Return what stands for this library's operators in an exported program, as ``run_decompositions`` takes it."""

    def scan(*arguments: Any) -> tuple[Tensor, Tensor]:
        u, delta, A, B, C, D, z, bias, words, softplus, merge, *_ = arguments
        call = ScanCall(u, delta, A, B, C, D, z, bias, tuple(unflatten(words)), softplus, merge)
        return composite.forward(call, lambda *given: _scan_along(scan_steps, *given)), call.A.new_empty(0)

    def gla(q: Tensor, k: Tensor, v: Tensor, log_gates: Tensor, *rest: Any) -> Tensor:
        heads, scale, words, merge, _ = rest
        walks = unflatten(words)
        parts = [followed(x, walks) for x in (q[:, None], k[:, None], v[:, None], log_gates)]
        o = _gla_along(gla_steps, walks, parts, heads, scale)
        return written(o, walks, q.shape[1], merge=merge)

    ours = torch.ops.vision_ssm
    return {
        torch.ops.aten.diagonal.default: _diagonal,
        ours.selective_scan.default: scan,
        ours.gla.default: gla,
        ours.causal_conv1d.default: convolution.forward,
    }


def _scan_along(steps: ScanSteps, call: ScanCall, delta: Tensor, added: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Run the recurrence over [B, K, T, C or N]; the runs of walks that start anew are sequences side by side."""
    run = _run(call.traversals)
    directions, length = delta.shape[1], delta.shape[2]

    def first(x: Tensor) -> Tensor:
        apart = x if run is None else torch.unflatten(x, 2, (length // run, run)).transpose(1, 2).flatten(0, 1)
        return apart.permute(2, 0, 1, 3)

    y = steps(first(delta), first(added), call.A.transpose(1, 2), first(b), first(c)).permute(1, 2, 0, 3)
    if run is None:
        return y
    by_run = torch.unflatten(y, 0, (delta.shape[0], length // run))
    return by_run.transpose(1, 2).reshape(-1, directions, length, y.shape[-1])


def _gla_along(
    steps: GlaSteps, walks: Sequence[Traversal], parts: Sequence[Tensor], heads: int, scale: float
) -> Tensor:
    """Run the recurrence over [B, K, T, H N or H V]; directions are further images."""
    if _run(walks) is not None:
        raise ConfigError("gated linear attention along walks that start anew cannot be exported")
    q, k, v, gates = (x.flatten(0, 1) for x in parts)
    o = steps(q, k, v, gates, heads, scale)
    return torch.unflatten(o, 0, tuple(parts[0].shape[:2]))


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Pick the entries of a diagonal one by one, where sizes are known.

    ONNX has it as a product with an identity matrix that is made as the file runs; where a size is open, OpenVINO
    2026.4 multiplies by memory that nobody has written.
    """
    first, second = dim1 % x.dim(), dim2 % x.dim()
    rows, columns = x.shape[first], x.shape[second]
    if not isinstance(rows, int) or not isinstance(columns, int):
        return NotImplemented
    top, left = max(-offset, 0), max(offset, 0)
    picked = (
        x.select(first, top + i).select(second - (second > first), left + i)
        for i in range(min(rows - top, columns - left))
    )
    return torch.stack(tuple(picked), -1)


def _run(walks: Sequence[Traversal]) -> int | None:
    """Return after how many steps all of the walks start anew; None where none does."""
    if not any(walk.reset for walk in walks):
        return None
    first = walks[0]
    if any((walk.reset, walk.inner_count, walk.length) != (True, first.inner_count, first.length) for walk in walks):
        raise ConfigError("walks that start anew can be exported only where they do so together")
    return first.inner_count
