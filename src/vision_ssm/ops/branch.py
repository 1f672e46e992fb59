"""Vim blocks in one call on the CPU: from the residual stream and back to it, for inference and for training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import cpu_branch, cpu_ssm
from vision_ssm.ops.backends import AUTO, choose, intercepted
from vision_ssm.ops.cpu import CpuBackend
from vision_ssm.ops.cpu_ssm import MOST_TAPS, Branch, BranchWeights, NormWeights, SsmWeights
from vision_ssm.ops.native import DTYPES

__all__ = [
    "Branch",
    "BranchWeights",
    "NormWeights",
    "SsmWeights",
    "branch_applies",
    "residual_branch",
    "try_residual_branch",
    "try_residual_column",
]


_PLAIN = (Tensor, torch.nn.Parameter)
_NAMES = ("norm weight", "in_proj", *SsmWeights._fields, "out_proj", "norm bias", "gamma")


def _all(weights: BranchWeights) -> tuple[Tensor | None, ...]:
    """Return the weights in the order of _NAMES."""
    norm = weights.norm
    return (norm.weight, weights.in_proj, *weights.ssm, weights.out_proj, norm.bias, weights.gamma)


def branch_applies(x: Tensor, branch: Branch) -> bool:
    """Tell whether :func:`residual_branch` can stand in for a block's modules: same result, less memory and time.

    It does for plain float32 streams on the CPU where the C++ kernel is the backend, the shapes fit, and nothing is
    traced, watched or transformed. Weights are float32; for inference bfloat16 too, unless the processor multiplies
    bfloat16 natively, which torch's products then do faster. Training takes float32 without autocast and without
    ``gamma``.
    """
    return _applicable(x, branch) is not None


def try_residual_branch(x: Tensor, branch: Branch) -> Tensor | None:
    """Return :func:`residual_branch` where :func:`branch_applies`, else None; everything is checked once."""
    backend = _applicable(x, branch)
    return None if backend is None else _run(x, branch, backend)


def try_residual_column(x: Tensor, branches: Sequence[Branch]) -> Tensor | None:
    """Return the stream x [B, L, D] after the blocks, which one call runs one after the other, for inference.

    None where gradients may be wanted, where not every block could run in one call by itself, or where the blocks
    differ in shapes, dtype or directions.
    """
    if torch.is_grad_enabled() or not branches:
        return None
    first = branches[0]
    backend = _applicable(x, first)
    if backend is None or not all(_alike(branch, first) for branch in branches):
        return None
    return cpu_ssm.column(x, branches, backend.isa)


def _alike(branch: Branch, first: Branch) -> bool:
    """Tell whether a block can follow another for which everything was checked."""
    if branch.walks_reversed != first.walks_reversed or branch.looks_back != first.looks_back:
        return False
    dtype = first.weights.in_proj.dtype
    for w, like in zip(_all(branch.weights), _all(first.weights), strict=True):
        if w is None or like is None:
            if w is not like:
                return False
        elif not _is_plain(w, dtype) or w.shape != like.shape:
            return False
    return True


def _is_plain(w: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether a weight is memory of that dtype that the kernel can read: subclasses need not have any."""
    return type(w) in _PLAIN and w.dtype is dtype and w.is_cpu


def _applicable(x: Tensor, branch: Branch) -> CpuBackend | None:
    """Return the backend that runs the block in one call, or None where it does not apply."""
    if type(x) is not Tensor or not x.is_cpu or x.dtype != torch.float32 or x.numel() == 0:
        return None
    if torch.compiler.is_compiling() or intercepted():
        return None
    weights = branch.weights
    dtype = weights.in_proj.dtype
    if dtype not in DTYPES:
        return None
    tensors = _all(weights)
    if not all(w is None or _is_plain(w, dtype) for w in tensors) or _misfit(x, branch) is not None:
        return None
    backend = choose(AUTO, x.device, x.dtype)
    if not isinstance(backend, CpuBackend):
        return None
    half = dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if _wants_gradient(x, tensors):
        applies = not half and weights.gamma is None
    else:
        applies = not (half and _multiplies_bfloat16())
    return backend if applies else None


def residual_branch(x: Tensor, branch: Branch) -> Tensor:
    """Return x + scale * gamma * out_proj(SSM(in_proj(norm(x)))), the SSM gated and summed over its directions.

    Without gradients everything is computed in float32 a few tiles of tokens at a time, and only the first half of
    in_proj and the running sum of the directions are held for the whole sequence. With gradients the input, the result
    of the scan and the states at chunk boundaries are kept, five times x's size at 16 states; everything else is
    recomputed in the backward pass.

    Args:
        x: stream, [B, L, D], float32.
        branch: the block's; its convolution has one set of taps per projection.

    Returns:
        [B, L, D], float32.

    Call it where :func:`branch_applies`.

    Raises:
        ShapeError: a weight does not fit the stream or the directions.
        BackendError: the kernel cannot run, or there is not enough memory for its working space.
    """
    misfit = _misfit(x, branch)
    if misfit is not None:
        raise ShapeError(misfit)
    backend = choose(AUTO, x.device, x.dtype)
    if not isinstance(backend, CpuBackend):
        raise BackendError(f"a block in one call runs on the 'cpu' backend only, not on {backend.name!r}")
    return _run(x, branch, backend)


def _run(x: Tensor, branch: Branch, backend: CpuBackend) -> Tensor:
    if _wants_gradient(x, _all(branch.weights)):
        return cpu_branch.train(x, branch, backend)
    return cpu_ssm.column(x, [branch], backend.isa)


def _wants_gradient(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(w is not None and w.requires_grad for w in tensors))


def _misfit(x: Tensor, branch: Branch) -> str | None:
    """Return what does not fit, or None. The kernel takes its sizes from few of the tensors and trusts the others."""
    if x.dim() != 3:
        return f"a block takes a stream [B, L, D], got {_show(x.shape)}"
    shapes = tuple(None if w is None else w.shape for w in _all(branch.weights))
    return _misfit_of(x.shape[2], shapes, len(branch.walks_reversed), len(branch.looks_back))


@lru_cache(maxsize=1024)
def _misfit_of(width: int, shapes: tuple[torch.Size | None, ...], directions: int, sets: int) -> str | None:
    found = dict(zip(_NAMES, shapes, strict=True))
    a_log, dt_proj, conv = found["A_log"], found["dt_proj_weight"], found["conv_weight"]
    if a_log is None or len(a_log) != 3 or dt_proj is None or len(dt_proj) != 3 or sets not in (1, directions):
        return (
            f"a block in one call takes A_log [{directions}, C, N] and dt_proj_weight [1 or {directions}, C, R], "
            f"got {_show(a_log)} and {_show(dt_proj)}"
        )
    if conv is None or len(conv) != 3 or not 1 <= conv[2] <= MOST_TAPS:
        return f"a block in one call needs a convolution of 1 to {MOST_TAPS} taps, got {_show(conv)}"
    (_, inner, states), rank, taps = a_log, dt_proj[2], conv[2]
    expected = (
        *((width,), (2 * inner, width), (directions, inner, states), (sets, inner), (sets, rank + 2 * states, inner)),
        *((sets, inner, rank), (sets, inner), (sets, inner, taps), (sets, inner), (width, inner), (width,), (width,)),
    )
    for (name, shape), wanted in zip(found.items(), expected, strict=True):
        if shape is None and name in ("norm bias", "gamma"):
            continue
        if shape != wanted:
            return f"{name} must be {list(wanted)} to fit the stream and A_log, got {_show(shape)}"
    return None


def _show(shape: torch.Size | None) -> str:
    return "None" if shape is None else str(list(shape))


def _multiplies_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
