"""A model as a program of torch (.pt2) that needs nothing of this library where it is opened.

A recurrence s[t] = a[t] s[t-1] + b[t] is summed up by doubling: after the step of width w, (a, b) of a token stand for
the last 2w tokens,

    b[t] <- b[t] + a[t] b[t - w]        a[t] <- a[t] a[t - w]        w = 1, 2, 4, ... below T

in products and sums that torch has for any device. The number of tokens is fixed: it decides how often. All states are
in memory at once, T x C x N values per direction and image, for as long as a layer takes. No factor is above 1, so
nothing overflows.

Source: the parallel prefix sum of Hillis and Steele, Data Parallel Algorithms, Communications of the ACM 29 (1986).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.exporting.lowering import Lower, Written
from vision_ssm.exporting.programs import program
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.runtimes import torch_program

__all__ = ["describe", "gla_steps", "scan_steps", "write"]


def write(
    path: Path,
    form: Form,
    images: Tensor,
    *,
    dynamic: Sequence[str],
    step: int,
    target: str,
    lower: Lower | None = None,
) -> Written:
    """Write a model in float32, without a description; ``target`` and ``lower`` are for formats that have several.

    Raises:
        ConfigError: the model cannot be traced.
    """
    torch.export.save(program(form, images, dynamic, step, scan_steps, gla_steps), path)
    return Written(())


def describe(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into a file, in place of what it said before."""
    found, said = torch_program(path)
    torch.export.save(found, path, extra_files={**said, **entries})


def scan_steps(delta: Tensor, added: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return y [T, B, K, C]: see `vision_ssm.exporting.operators`."""
    decay = torch.exp(delta[:, :, :, None] * A)
    states = _doubled(decay, B[..., None] * added[:, :, :, None])
    return torch.matmul(C[:, :, :, None], states).squeeze(-2)


def gla_steps(q: Tensor, k: Tensor, v: Tensor, log_gates: Tensor, heads: int, scale: float) -> Tensor:
    """Return o [B, T, H V]: see `vision_ssm.exporting.operators`."""
    of_q, of_k, of_v, gates = (
        torch.unflatten(x, -1, (heads, x.shape[-1] // heads)).transpose(0, 1) for x in (q, k, v, log_gates)
    )
    states = _doubled(torch.exp(gates)[..., None], of_k[..., None] * of_v[..., None, :])
    o = scale * torch.matmul(of_q[..., None, :], states).squeeze(-2)
    return o.transpose(0, 1).flatten(-2)


def _doubled(a: Tensor, b: Tensor) -> Tensor:
    """Return the states s [T, ...] of s[t] = a[t] s[t-1] + b[t], s before the first token = 0."""
    width = 1
    while width < b.shape[0]:
        before_a, before_b = (_shifted(x, width) for x in (a, b))
        a, b = a * before_a, b + a * before_b
        width *= 2
    return b


def _shifted(x: Tensor, width: int) -> Tensor:
    """Return x [T, ...] later by so many steps, zeros before."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (width, 0))[: x.shape[0]]
