"""A Vim block in one call on the CPU: from the residual stream and back to it, for inference and for training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import cpu_branch, cpu_ssm
from vision_ssm.ops.backends import AUTO, choose
from vision_ssm.ops.cpu import CpuBackend
from vision_ssm.ops.cpu_ssm import MOST_TAPS, NormWeights, SsmWeights
from vision_ssm.ops.native import DTYPES
from vision_ssm.ops.traversal import Traversal

__all__ = ["BranchWeights", "NormWeights", "SsmWeights", "branch_applies", "residual_branch"]


_PLAIN = (Tensor, torch.nn.Parameter)
_NAMES = ("norm weight", "in_proj", *SsmWeights._fields, "out_proj")


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

    It does for plain float32 streams on the CPU where the C++ kernel is the backend, the shapes fit, and nothing is
    traced, watched or transformed. Weights are float32; for inference bfloat16 too, unless the processor multiplies
    bfloat16 natively, which torch's products then do faster. Training takes float32 without autocast and without
    ``gamma``.
    """
    tensors = weights.tensors()
    if type(x) is not Tensor or any(type(w) not in _PLAIN for w in tensors):  # subclasses need not have memory
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0:
        return False
    if torch.compiler.is_compiling() or _intercepted():
        return False
    dtype = tensors[0].dtype
    if dtype not in DTYPES or any(w.dtype != dtype or w.device != x.device for w in tensors):
        return False
    if _misfit(x, weights, walks_reversed, looks_back) is not None:
        return False
    if not isinstance(choose(AUTO, x.device, x.dtype), CpuBackend):
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
    of the scan and the states at chunk boundaries are kept, five times x's size at 16 states; everything else is
    recomputed in the backward pass.

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
        ShapeError: a weight does not fit the stream or the directions.
        BackendError: the kernel cannot run, or there is not enough memory for its working space.
    """
    misfit = _misfit(x, weights, walks_reversed, looks_back)
    if misfit is not None:
        raise ShapeError(misfit)
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


def _misfit(
    x: Tensor, weights: BranchWeights, walks_reversed: Sequence[bool], looks_back: Sequence[bool]
) -> str | None:
    """Return what does not fit, or None. The kernel takes its sizes from few of the tensors and trusts the others."""
    ssm, directions, sets = weights.ssm, len(walks_reversed), len(looks_back)
    if x.dim() != 3 or ssm.A_log.dim() != 3 or ssm.dt_proj_weight.dim() != 3 or sets not in (1, directions):
        return f"a block takes a stream [B, L, D] and A_log [{directions}, C, N], got {_show(x)} and {_show(ssm.A_log)}"
    if ssm.conv_weight is None or ssm.conv_weight.dim() != 3 or not 1 <= ssm.conv_weight.shape[2] <= MOST_TAPS:
        return f"a block in one call needs a convolution of 1 to {MOST_TAPS} taps, got {_show(ssm.conv_weight)}"
    width, (_, inner, states) = x.shape[2], ssm.A_log.shape
    rank, taps = ssm.dt_proj_weight.shape[2], ssm.conv_weight.shape[2]
    found = (weights.norm.weight, weights.in_proj, *ssm, weights.out_proj)
    expected = (
        *((width,), (2 * inner, width), (directions, inner, states), (sets, inner), (sets, rank + 2 * states, inner)),
        *((sets, inner, rank), (sets, inner), (sets, inner, taps), (sets, inner), (width, inner)),
    )
    for name, tensor, shape in zip(_NAMES, found, expected, strict=True):
        if tensor is None or tensor.shape != shape:
            return f"{name} must be {list(shape)} to fit the stream and A_log, got {_show(tensor)}"
    for name, tensor in (("norm bias", weights.norm.bias), ("gamma", weights.gamma)):
        if tensor is not None and tensor.shape != (width,):
            return f"{name} must be [{width}] to fit the stream, got {_show(tensor)}"
    return None


def _show(x: Tensor | None) -> str:
    return "None" if x is None else str(list(x.shape))


def _intercepted() -> bool:
    """Tell whether something watches or transforms operations, which the kernel would escape."""
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    transforms = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return bool(modes or transforms or torch._C._get_tracing_state())


def _multiplies_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
