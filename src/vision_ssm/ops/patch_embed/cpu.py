"""Patches embedded in C++ (csrc/), a row of them at a time."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.gate import check_sizes, memory
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, mirrors

__all__ = ["forward"]


@mirrors("vssm_patch_embed")
class _Embed(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "channels", "height", "width", "side", "stride", "rows", "columns")),
        *((n, ctypes.c_int64) for n in ("embed", "classes", "batch_stride", "channel_stride", "row_stride")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "dtype")),
        *((n, ctypes.c_void_p) for n in ("images", "weight", "bias", "class_rows", "positions")),
        ("places", ctypes.POINTER(ctypes.c_int64)),
        ("out", TensorArgument),
    )


def forward(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    class_rows: Tensor | None,
    places: tuple[int, ...],
    stride: int,
) -> Tensor:
    """Return [B, L, D], float32; everything of one dtype."""
    (batch, channels, height, width), (embed, _, side, _), dtype = images.shape, weight.shape, images.dtype
    check_sizes("the patch embedding", channels=channels, embed=embed, side=side, stride=stride)
    check_sizes("the patch embedding", side, height=height, width=width)
    rows, columns = ((size - side + stride - 1) // stride + 1 for size in (height, width))
    classes = len(places)
    tokens = rows * columns + classes
    if stride > side or list(places) != sorted({place for place in places if 0 <= place < tokens}):
        raise ShapeError(
            f"the patch embedding expects a stride of 1 to {side} and ascending places below {tokens}, "
            f"got {stride} and {places}"
        )
    out = torch.empty(batch, tokens, embed, dtype=torch.float32, device="cpu")
    images = memory("images", images, images.shape, dtype)
    if images.stride(3) != 1:
        images = images.contiguous()
    call = _Embed(batch=batch, channels=channels, height=height, width=width, side=side, stride=stride)
    call.rows, call.columns, call.embed, call.classes = rows, columns, embed, classes
    call.batch_stride, call.channel_stride, call.row_stride, _ = images.stride()
    call.threads, call.isa, call.dtype = torch.get_num_threads(), native.ISA, DTYPES[dtype]
    kernel = KernelCall(call)
    call.images = images.data_ptr()
    call.weight = kernel.pointer("weight", weight, (embed, channels, side, side), dtype)
    call.bias = kernel.pointer_or_none("bias", bias, (embed,), dtype)
    if classes:
        call.class_rows = kernel.pointer("class_rows", class_rows, (1, classes, embed), dtype)
    call.positions = kernel.pointer("positions", positions, (1, tokens, embed), dtype)
    call.places = (ctypes.c_int64 * classes)(*places)
    kernel.set((batch, 1, tokens, embed), torch.float32, out=out)
    kernel.run("vssm_patch_embed_forward")
    return out
