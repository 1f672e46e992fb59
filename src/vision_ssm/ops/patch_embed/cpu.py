"""Patches embedded in C++ (csrc/), a row of them at a time."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vision_ssm.ops import native
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
    """Return [B, L, D], float32; everything plain tensors of one dtype, checked by the caller."""
    (batch, channels, height, width), (embed, _, side, _) = images.shape, weight.shape
    rows, columns = ((size - side + stride - 1) // stride + 1 for size in (height, width))
    classes = len(places)
    out = torch.empty(batch, rows * columns + classes, embed, dtype=torch.float32, device=images.device)
    if images.stride(3) != 1:
        images = images.contiguous()
    call = _Embed(batch=batch, channels=channels, height=height, width=width, side=side, stride=stride)
    call.rows, call.columns, call.embed, call.classes = rows, columns, embed, classes
    call.batch_stride, call.channel_stride, call.row_stride, _ = images.stride()
    call.threads, call.isa, call.dtype = torch.get_num_threads(), native.ISA, DTYPES[images.dtype]
    kernel = KernelCall(call)
    call.images = images.data_ptr()
    call.weight, call.bias, call.class_rows, call.positions = map(kernel.pointer, (weight, bias, class_rows, positions))
    call.places = (ctypes.c_int64 * classes)(*places)
    kernel.set(out=out)
    kernel.run("vssm_patch_embed_forward")
    return out
