"""The first layer of a Vim in one call on the CPU, for inference: from images to the residual stream."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.dispatch import choose, native_call_applies
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, are_plain, mirrors

__all__ = ["embed_applies", "embed_patches"]


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


def embed_applies(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    class_rows: Tensor | None = None,
    places: tuple[int, ...] = (),
    *,
    stride: int,
) -> bool:
    """Tell whether :func:`embed_patches` can stand in for the modules: same result, less memory and time.

    It does where :func:`vision_ssm.ops.dispatch.native_call_applies` and the shapes fit.
    """
    others = [t for t in (weight, bias, positions, class_rows) if t is not None]
    applies = native_call_applies("patch_embed", images, others)
    return applies and _misfit(images, weight, bias, positions, class_rows, places, stride) is None


def embed_patches(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    class_rows: Tensor | None = None,
    places: tuple[int, ...] = (),
    *,
    stride: int,
) -> Tensor:
    """Return patches of images, embedded by a convolution, among class tokens, and positions added to all.

    Where the processor multiplies pairs of bfloat16 (AVX512-BF16) and the tensors are of it, the products take both
    sides rounded to it and sum in float32; everything else is float32. Not differentiable.

    Args:
        images: [B, C, H, W]. Patches begin every ``stride`` pixels as long as any pixel is left after the first patch;
            beyond the image they are zero.
        weight: of the convolution, [D, C, P, P].
        bias: of the convolution, [D].
        positions: [1, L, D], L = patches + class tokens.
        class_rows: T class tokens, [1, T, D].
        places: where they are in the sequence, T ascending numbers.
        stride: pixels between patches, at most P.

    Returns:
        [B, L, D], float32.

    Call it where :func:`embed_applies`.

    Raises:
        ShapeError: the shapes do not fit.
        BackendError: the tensors are not plain ones of one dtype on the CPU, the kernel cannot run, or there is not
            enough memory for its working space.
    """
    misfit = _misfit(images, weight, bias, positions, class_rows, places, stride)
    if misfit is not None:
        raise ShapeError(misfit)
    tensors = [t for t in (images, weight, bias, positions, class_rows) if t is not None]
    readable = all(t.layout is torch.strided and not t.is_neg() for t in tensors)
    if not readable or not are_plain(tensors, images.dtype) or images.dtype not in DTYPES:
        found = ", ".join(sorted({f"{type(t).__name__} of {t.dtype} on {t.device}" for t in tensors}))
        raise BackendError(f"patches are embedded in one call from plain tensors of one dtype on the CPU, got {found}")
    backend = choose("patch_embed", images.device, images.dtype)
    if backend.name != "cpu":
        raise BackendError(f"patches are embedded in one call on the 'cpu' backend only, not on {backend.name!r}")
    (batch, channels, height, width), (embed, _, side, _) = images.shape, weight.shape
    rows, columns = _grid(height, width, side, stride)
    classes, tokens = len(places), rows * columns + len(places)
    out = torch.empty(batch, tokens, embed, dtype=torch.float32, device=images.device)
    if batch == 0:
        return out
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


def _grid(height: int, width: int, side: int, stride: int) -> tuple[int, int]:
    return (height - side + stride - 1) // stride + 1, (width - side + stride - 1) // stride + 1


def _misfit(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    class_rows: Tensor | None,
    places: tuple[int, ...],
    stride: int,
) -> str | None:
    """Return what does not fit, or None. The kernel takes its sizes from few of the tensors and trusts the others."""
    square = weight.dim() == 4 and weight.shape[2] == weight.shape[3] and 0 not in weight.shape
    if images.dim() != 4 or not square or not 1 <= stride <= weight.shape[3]:
        return (
            "expected images [B, C, H, W] and a weight [D, C, P, P] with a stride of 1 to P, got "
            f"{list(images.shape)}, {list(weight.shape)} and {stride}"
        )
    (_, channels, height, width), (embed, _, side, _) = images.shape, weight.shape
    if min(height, width) < side:
        return f"an image of {height}x{width} is smaller than a patch of {side}x{side}"
    rows, columns = _grid(height, width, side, stride)
    classes, tokens = len(places), rows * columns + len(places)
    expected = {
        "weight": (weight, (embed, channels, side, side)),
        "bias": (bias, (embed,)),
        "positions": (positions, (1, tokens, embed)),
        "class_rows": (class_rows, (1, classes, embed)),
    }
    for name, (found, wanted) in expected.items():
        if found is not None and found.shape != wanted:
            return f"{name} must be {list(wanted)} to fit the images and places, got {list(found.shape)}"
    if (class_rows is None) != (classes == 0) or list(places) != sorted({p for p in places if 0 <= p < tokens}):
        return f"places must be ascending numbers below {tokens}, one per class row, got {places}"
    return None
