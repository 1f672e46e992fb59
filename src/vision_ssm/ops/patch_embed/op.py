"""Images to the residual stream of a columnar model, in one call on the CPU.

t_i = weight flatten(patch_i) + bias                         M patches [C, P, P] every S pixels
stream = [t_1, ..., class tokens at their places, ..., t_M] + positions       [B, L, D], L = M + class tokens
"""

from __future__ import annotations

from torch import Tensor

from vision_ssm.errors import ShapeError
from vision_ssm.ops.dispatch import native_call_applies
from vision_ssm.ops.gate import check_tensors
from vision_ssm.ops.patch_embed import cpu, reference

__all__ = ["applies", "embed_patches"]


def applies(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    class_rows: Tensor | None = None,
    places: tuple[int, ...] = (),
    *,
    stride: int,
) -> bool:
    """Tell whether :func:`embed_patches` takes one call: same result, less memory and time.

    It does where :func:`vision_ssm.ops.dispatch.native_call_applies` and the shapes fit.
    """
    others = [t for t in (weight, bias, positions, class_rows) if t is not None]
    native = native_call_applies("patch_embed", images, others)
    return native and _misfit(images, weight, bias, positions, class_rows, places, stride) is None


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

    Where :func:`applies`, in one call, without a gradient; elsewhere by torch's operations one after the other. In one
    call, where the processor multiplies pairs of bfloat16 (AVX512-BF16) and the tensors are of it, the products take
    both sides rounded to it and sum in float32; everything else is float32.

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
        [B, L, D], of float32 at least.

    Raises:
        ShapeError: the shapes do not fit, or a tensor is not floating or on another device than the images.
        BackendError: the backend asked for cannot run, or there is not enough memory for its working space.
    """
    given = (images, weight, bias, positions, class_rows, places)
    named = {"images": images, "weight": weight, "bias": bias, "positions": positions, "class_rows": class_rows}
    check_tensors("embed_patches", images, "bias", "class_rows", **named)
    if applies(*given, stride=stride):
        return cpu.forward(*given, stride)
    misfit = _misfit(*given, stride)
    if misfit is not None:
        raise ShapeError(misfit)
    return reference.forward(*given, stride)


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
