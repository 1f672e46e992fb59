"""A Vim block in one call on the CPU: from the residual stream and back to it, for inference and for training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import BackendError
from vision_ssm.ops import cpu_branch, cpu_ssm
from vision_ssm.ops.backends import AUTO, choose
from vision_ssm.ops.cpu import CpuBackend
from vision_ssm.ops.cpu_ssm import NormWeights, SsmWeights
from vision_ssm.ops.native import DTYPES
from vision_ssm.ops.traversal import Traversal

__all__ = ["BranchWeights", "NormWeights", "SsmWeights", "branch_applies", "residual_branch"]


class BranchWeights(NamedTuple):
    """What a block learns: norm over D, in_proj [2C, D], the SSM over C channels, out_proj [D, C], ``gamma`` [D]."""

    norm: NormWeights
    in_proj: Tensor
    ssm: SsmWeights
    out_proj: Tensor
    gamma: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return all of them, in a fixed order."""
        flat = (self.norm.weight, self.norm.bias, self.in_proj, *self.ssm, self.out_proj, self.gamma)
        return [x for x in flat if x is not None]


def branch_applies(
    x: Tensor, weights: BranchWeights, walks_reversed: Sequence[bool], looks_back: Sequence[bool]
) -> bool:
    """Tell whether :func:`residual_branch` can stand in for a block's modules: same result, less memory and time.

    It does for plain float32 streams on the CPU where the C++ kernel is the backend and nothing is traced, counted or
    transformed. Weights are float32; for inference bfloat16 too, unless the processor multiplies bfloat16 natively,
    which torch's products then do faster. Training takes float32 without autocast and without ``gamma``.
    """
    tensors = weights.tensors()
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0:
        return False
    if torch.compiler.is_compiling() or _intercepted():
        return False
    dtype = tensors[0].dtype
    if dtype not in DTYPES or any(w.dtype != dtype or w.device != x.device for w in tensors):
        return False
    # The first walk meets tokens in the order in which its convolution looks at them.
    if looks_back[0] != walks_reversed[0] or not isinstance(choose(AUTO, x.device, x.dtype), CpuBackend):
        return False
    half = dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if _wants_gradient(x, tensors):
        return not half and weights.gamma is None
    return not (half and _multiplies_bfloat16())


def residual_branch(
    x: Tensor, weights: BranchWeights, scale: float, walks_reversed: Sequence[bool], looks_back: Sequence[bool]
) -> Tensor:
    """Return x + scale * gamma * out_proj(SSM(in_proj(norm(x)))), the SSM gated and summed over its directions.

    Without gradients everything is computed in float32 a few tiles of tokens at a time, and only the first half of
    in_proj and the running sum of the directions are held for the whole sequence. With gradients the input, the result
    of in_proj, the result of the scan and the states at chunk boundaries are kept, nine times x's size at 16 states;
    convolution, projections and scan are recomputed in the backward pass.

    Args:
        x: stream, [B, L, D], float32.
        weights: of the block; the convolution has one set of taps per projection.
        scale: of the branch.
        walks_reversed: for each of the K directions, whether it walks from the last token.
        looks_back: for each set of taps, whether it looks towards the end of the sequence.

    Returns:
        [B, L, D], float32.

    Call it where :func:`branch_applies`.

    Raises:
        BackendError: the kernel cannot run, or there is not enough memory for its working space.
    """
    traversals = _sequences(x.shape[1], tuple(walks_reversed))
    backend = choose(AUTO, x.device, x.dtype)
    if not isinstance(backend, CpuBackend):
        raise BackendError(f"a block in one call runs on the 'cpu' backend only, not on {backend.name!r}")
    if _wants_gradient(x, weights.tensors()):
        return cpu_branch.train(x, weights, scale, traversals, looks_back, backend)
    return cpu_ssm.branch(
        x,
        weights.norm,
        weights.in_proj,
        weights.ssm,
        weights.out_proj,
        weights.gamma,
        scale,
        traversals,
        looks_back,
        backend.isa,
    )


@lru_cache(maxsize=256)
def _sequences(length: int, walks_reversed: tuple[bool, ...]) -> tuple[Traversal, ...]:
    return tuple(Traversal.sequence(length, reverse=back) for back in walks_reversed)


def _wants_gradient(x: Tensor, tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in tensors))


def _intercepted() -> bool:
    """Tell whether something watches or transforms operations: a dispatch mode, torch.func, a trace."""
    modes, transforms = torch._C._len_torch_dispatch_stack(), torch._C._are_functorch_transforms_active()
    return bool(modes or transforms or torch._C._get_tracing_state())


def _multiplies_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
