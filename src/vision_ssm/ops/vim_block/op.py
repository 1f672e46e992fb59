"""Vim blocks in one call on the CPU: from the residual stream and back to it, for inference and for training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops.add_norm.contract import NormWeights
from vision_ssm.ops.conv.contract import MOST_TAPS
from vision_ssm.ops.dispatch import choose, intercepted
from vision_ssm.ops.native import DTYPES, are_plain, multiplies_tiles_of_bfloat16
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.vim_block import cpu as cpu_block
from vision_ssm.ops.vim_block import cpu_training as cpu_branch
from vision_ssm.ops.vim_block.cpu import BRANCH_WEIGHTS, Branch, BranchWeights

__all__ = [
    "Branch",
    "BranchWeights",
    "NormWeights",
    "SsmWeights",
    "branch_applies",
    "leaves_to_tiles",
    "residual_branch",
    "takes_stream",
    "try_residual_branch",
]


def branch_applies(x: Tensor, branch: Branch) -> bool:
    """Tell whether :func:`residual_branch` can stand in for a block's modules: same result, less memory and time.

    It does for plain float32 streams on the CPU where the C++ kernel is the backend, the shapes fit, and nothing is
    traced, watched or transformed. Weights are float32; for inference bfloat16 too, unless the processor multiplies
    whole tiles of bfloat16 (AMX), as torch's products then do and the kernel does not; the same goes for autocast.
    Training takes float32 weights and no ``gamma``.
    """
    dtype = branch.weights.in_proj.dtype
    if dtype not in DTYPES or not takes_stream(x):
        return False
    tensors = [w for w in branch.weights.in_order() if w is not None]
    if not are_plain(tensors, dtype) or _misfit(x, branch) is not None or leaves_to_tiles(dtype):
        return False
    trains = _wants_gradient(x, tensors)
    return not trains or (dtype == torch.float32 and branch.weights.gamma is None)


def try_residual_branch(x: Tensor, branch: Branch) -> Tensor | None:
    """Return :func:`residual_branch` where :func:`branch_applies`, else None; everything is checked once."""
    return _run(x, branch) if branch_applies(x, branch) else None


def takes_stream(x: Tensor) -> bool:
    """Tell whether a stream x may be taken in one call, whatever the weights."""
    if type(x) is not Tensor or not x.is_cpu or x.dtype != torch.float32 or x.numel() == 0:
        return False
    if torch.compiler.is_compiling() or intercepted():
        return False
    return choose("vim_block", x.device, x.dtype).name == "cpu"


def leaves_to_tiles(dtype: torch.dtype) -> bool:
    """Tell whether products, with weights of that dtype, are better left to torch: of bfloat16, and in tiles."""
    half = dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return half and multiplies_tiles_of_bfloat16()


def residual_branch(x: Tensor, branch: Branch) -> Tensor:
    """Return x + scale * gamma * out_proj(SSM(in_proj(norm(x)))), the SSM gated and summed over its directions.

    Without gradients everything is computed in float32 a few tiles of tokens at a time, and only the first half of
    in_proj and the running sum of the directions are held for the whole sequence. With gradients the input, the sum of
    the directions, the states at chunk boundaries and what x_proj yields are kept, five and a half times x's size at
    16 states, and of images of up to 512 tokens what in_proj yields as well, which makes it nine and a half; everything
    else is recomputed in the backward pass.

    Where the processor multiplies pairs of bfloat16 (AVX512-BF16), and weights are bfloat16 or autocast asks for it,
    the products with in_proj and out_proj, and the forward one with x_proj, take both sides rounded to it and sum in
    float32. The gradients of in_proj and out_proj are then rounded to it as well.

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
    backend = choose("vim_block", x.device, x.dtype)
    if backend.name != "cpu":
        raise BackendError(f"a block in one call runs on the 'cpu' backend only, not on {backend.name!r}")
    return _run(x, branch)


def _run(x: Tensor, branch: Branch) -> Tensor:
    if x.numel() == 0:
        return x.clone()
    if _wants_gradient(x, branch.weights.in_order()):
        return cpu_branch.train(x, branch)
    half = cpu_block.multiplies_bfloat16(branch.weights)
    return cpu_block.column(x, cpu_block.describe(x, [branch], half))


def _wants_gradient(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(w is not None and w.requires_grad for w in tensors))


def _misfit(x: Tensor, branch: Branch) -> str | None:
    """Return what does not fit, or None. The kernel takes its sizes from few of the tensors and trusts the others."""
    if x.dim() != 3:
        return f"a block takes a stream [B, L, D], got {_show(x.shape)}"
    shapes = tuple(None if w is None else w.shape for w in branch.weights.in_order())
    return _misfit_of(x.shape[2], shapes, len(branch.walks_reversed), len(branch.looks_back))


@lru_cache(maxsize=1024)
def _misfit_of(width: int, shapes: tuple[torch.Size | None, ...], directions: int, sets: int) -> str | None:
    found = dict(zip(BRANCH_WEIGHTS, shapes, strict=True))
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
        *((directions, inner, states), (sets, inner), (sets, rank + 2 * states, inner), (sets, inner, rank)),
        *((sets, inner), (sets, inner, taps), (sets, inner)),
        *((width,), (width,), (2 * inner, width), (width, inner), (width,)),
    )
    for (name, shape), wanted in zip(found.items(), expected, strict=True):
        if shape is None and name in ("norm bias", "gamma"):
            continue
        if shape != wanted:
            return f"{name} must be {list(wanted)} to fit the stream and A_log, got {_show(shape)}"
    return None


def _show(shape: torch.Size | None) -> str:
    return "None" if shape is None else str(list(shape))
