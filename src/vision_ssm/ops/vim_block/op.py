"""A Vim block from the residual stream and back to it, in one call on the CPU.

    x, z = in_proj norm(T)                                       T [B, L, D] to x, z [B, L, E]
    y = SSM(silu(conv(x))) * silu(z)                             summed over the directions, see ops/ssm/op.py
    vim_block(T) = T + scale * gamma * out_proj y                [B, L, D]

For inference and for training; several blocks in one call are column.py. Source: Vim, arXiv:2401.09417, Alg. 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.ops.add_norm.contract import NORMS
from vision_ssm.ops.conv.contract import MOST_TAPS
from vision_ssm.ops.dispatch import choose, intercepted
from vision_ssm.ops.gate import check_tensors, show
from vision_ssm.ops.native import DTYPES, are_plain, multiplies_tiles_of_bfloat16
from vision_ssm.ops.vim_block import cpu, cpu_training, reference
from vision_ssm.ops.vim_block.contract import OPTIONAL, WEIGHTS, VimBlock, misfit_of

__all__ = ["applies", "leaves_to_tiles", "takes_stream", "vim_block"]


def applies(x: Tensor, block: VimBlock) -> bool:
    """Tell whether :func:`vim_block` takes one call: same result, less memory and time.

    It does for plain float32 streams on the CPU where the C++ kernel is the backend, the shapes fit, and nothing is
    traced, watched or transformed. Weights are float32; for inference bfloat16 too, unless the processor multiplies
    whole tiles of bfloat16 (AMX), as torch's products then do and the kernel does not; the same goes for autocast.
    Training takes float32 weights and no ``gamma``.
    """
    dtype = block.in_proj.dtype
    if dtype not in DTYPES or block.norm.kind not in NORMS or not takes_stream(x):
        return False
    tensors = [w for w in block.tensors() if w is not None]
    if not are_plain(tensors, dtype) or _misfit(x, block) is not None or leaves_to_tiles(dtype):
        return False
    if block.ssm.conv_weight is None or block.ssm.conv_weight.shape[2] > MOST_TAPS:
        return False
    trains = _wants_gradient(x, tensors)
    return not trains or (dtype == torch.float32 and block.gamma is None)


def takes_stream(x: Tensor) -> bool:
    """Tell whether a stream x may be taken in one call, whatever the weights."""
    if type(x) is not Tensor or not are_plain((x,), torch.float32) or x.numel() == 0:
        return False
    if torch.compiler.is_compiling() or intercepted():
        return False
    return choose("vim_block", x.device, x.dtype).name == "cpu"


def leaves_to_tiles(dtype: torch.dtype) -> bool:
    """Tell whether products, with weights of that dtype, are better left to torch: of bfloat16, and in tiles."""
    half = dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return half and multiplies_tiles_of_bfloat16()


def vim_block(x: Tensor, block: VimBlock) -> Tensor:
    """Return the stream after a block.

    Where :func:`applies`, in one call. Without gradients everything is computed in float32 a few tiles of tokens at a
    time, and only x and the running sum of the directions are held for the whole sequence. With gradients the
    input, the sum of the directions, the states at chunk boundaries and what x_proj yields are kept, five and a half
    times the stream's size at 16 states, and of images of up to 512 tokens what in_proj yields as well, which makes it
    nine and a half; everything else is recomputed in the backward pass, and :func:`vision_ssm.ops.release_memory` gives
    back what is kept from step to step. Elsewhere norm, products and SSM run one after the other.

    Where the processor multiplies pairs of bfloat16 (AVX512-BF16), and weights are bfloat16 or autocast asks for it,
    the products with in_proj and out_proj, and the forward one with x_proj, take both sides rounded to it and sum in
    float32. The gradients of in_proj and out_proj are then rounded to it as well.

    Args:
        x: stream, [B, L, D].
        block: weights and form; its convolution has one set of taps per projection.

    Returns:
        [B, L, D], float32 from a float32 stream.

    Raises:
        ShapeError: a weight does not fit the stream or the directions, or a tensor is not floating or elsewhere.
        ConfigError: there is no such norm.
        BackendError: the backend asked for cannot run these tensors, or memory is short.
    """
    check_tensors("vim_block", x, *OPTIONAL, x=x, **dict(zip(WEIGHTS, block.tensors(), strict=True)))
    if applies(x, block):
        if _wants_gradient(x, block.tensors()):
            return cpu_training.train(x, block, reference.forward)
        return cpu.forward(x, block, cpu.multiplies_bfloat16(block))
    misfit = _misfit(x, block)
    if misfit is not None:
        raise ShapeError(misfit)
    if block.norm.kind not in NORMS:
        raise ConfigError(f"the norm of a Vim block must be one of {', '.join(NORMS)}, got {block.norm.kind!r}")
    return reference.forward(x, block)


def _wants_gradient(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(w is not None and w.requires_grad for w in tensors))


def _misfit(x: Tensor, block: VimBlock) -> str | None:
    """Return what does not fit, or None."""
    if x.dim() != 3:
        return f"a block takes a stream [B, L, D], got {show(x.shape)}"
    shapes = tuple(None if w is None else w.shape for w in block.tensors())
    return misfit_of(x.shape[2], shapes, len(block.walks_reversed), len(block.looks_back))
