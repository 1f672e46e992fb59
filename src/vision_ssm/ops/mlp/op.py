"""The MLP branch of a block in one call on the CPU, for inference: from the residual stream and back to it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import BackendError, ConfigError, ShapeError
from vision_ssm.ops import native
from vision_ssm.ops.add_norm.contract import NORMS, NormWeights
from vision_ssm.ops.dispatch import choose, native_call_applies
from vision_ssm.ops.native import DTYPES, KernelCall, TensorArgument, are_plain, mirrors

__all__ = ["MlpWeights", "mlp_applies", "residual_mlp"]


class MlpWeights(NamedTuple):
    """A norm over C channels, a linear layer to H hidden values [H, C], [H], and one back [C, H], [C]."""

    norm: NormWeights
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor

    def in_order(self) -> tuple[Tensor | None, ...]:
        """Return the weights in the order of the kernel's."""
        return (self.norm.weight, self.norm.bias, *self[1:])


@mirrors("vssm_mlp")
class _Mlp(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("tokens", "width", "hidden")),
        *((n, ctypes.c_int32) for n in ("threads", "isa", "norm", "parameter_dtype", "product_dtype")),
        ("eps", ctypes.c_float),
        *((n, ctypes.c_void_p) for n in ("norm_weight", "norm_bias", "fc1", "fc1_bias", "fc2", "fc2_bias")),
        *((n, TensorArgument) for n in ("x", "added", "out")),
    )


def mlp_applies(x: Tensor, added: Tensor, weights: MlpWeights) -> bool:
    """Tell whether :func:`residual_mlp` can stand in for the modules: same result, less memory and time.

    It does where :func:`vision_ssm.ops.dispatch.native_call_applies` and the shapes fit.
    """
    others = [added, *(w for w in weights.in_order() if w is not None)]
    fits = weights.norm.kind in NORMS and native_call_applies("mlp", x, others)
    return fits and _misfit(x, added, weights) is None


def residual_mlp(x: Tensor, added: Tensor, weights: MlpWeights) -> Tensor:
    """Return s + fc2(GELU(fc1(norm(s)))), s = x + added; not differentiable.

    64 tokens at a time or fewer, so that neither the normalised nor the hidden values go through memory; up to 256
    tokens together, in whose hidden values the threads take columns. Everything is computed in float32, but for this:
    where the processor multiplies pairs of bfloat16 (AVX512-BF16) and the tensors are of it, the products take both
    sides rounded to it and sum in float32. GELU is the exact one, not tanh's.

    Args:
        x: stream, [..., C].
        added: what the branch before adds to it, the same shape.
        weights: the branch's, of x's dtype.

    Returns:
        [..., C], contiguous, of x's dtype.

    Call it where :func:`mlp_applies`.

    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: there is no such norm.
        BackendError: the tensors are not plain ones of one dtype on the CPU, the kernel cannot run, or there is not
            enough memory for its working space.
    """
    misfit = _misfit(x, added, weights)
    if misfit is not None:
        raise ShapeError(misfit)
    if weights.norm.kind not in NORMS:
        raise ConfigError(f"the norm of an MLP branch must be one of {', '.join(NORMS)}, got {weights.norm.kind!r}")
    tensors = [x, added, *(w for w in weights.in_order() if w is not None)]
    if not are_plain(tensors, x.dtype):
        found = ", ".join(sorted({f"{type(t).__name__} of {t.dtype} on {t.device}" for t in tensors}))
        raise BackendError(f"an MLP branch in one call takes plain tensors of one dtype on the CPU, got {found}")
    backend = choose("mlp", x.device, x.dtype)
    if backend.name != "cpu":
        raise BackendError(f"an MLP branch in one call runs on the 'cpu' backend only, not on {backend.name!r}")
    if x.numel() == 0:
        return x + added
    hidden, width = weights.fc1_weight.shape
    dtype = DTYPES[x.dtype]
    mlp = _Mlp(width=width, hidden=hidden, tokens=x.numel() // width, threads=torch.get_num_threads(), isa=native.ISA)
    mlp.parameter_dtype = mlp.product_dtype = dtype
    mlp.norm, mlp.eps = NORMS.index(weights.norm.kind), weights.norm.eps
    kernel = KernelCall(mlp)
    mlp.norm_weight, mlp.norm_bias, mlp.fc1, mlp.fc1_bias, mlp.fc2, mlp.fc2_bias = map(
        kernel.pointer, weights.in_order()
    )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kernel.set(**{name: t.reshape(1, -1, width) for name, t in (("x", x), ("added", added), ("out", out))})
    kernel.run("vssm_mlp_forward")
    return out


def _misfit(x: Tensor, added: Tensor, weights: MlpWeights) -> str | None:
    """Return what does not fit, or None. The kernel takes its sizes from few of the tensors and trusts the others."""
    if x.dim() == 0 or added.shape != x.shape:
        return (
            f"an MLP branch takes x [..., C] and added of the same shape, got {list(x.shape)} and {list(added.shape)}"
        )
    width, hidden = x.shape[-1], weights.fc1_weight.shape[0] if weights.fc1_weight.dim() else 0
    if width == 0 or hidden == 0:
        return f"an MLP branch needs a channel and a hidden value at least, got {width} and {hidden}"
    expected = ((width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
    names = ("norm weight", "norm bias", *MlpWeights._fields[1:])
    for name, weight, wanted in zip(names, weights.in_order(), expected, strict=True):
        if weight is not None and weight.shape != wanted:
            return f"{name} must be {list(wanted)} to fit the stream and fc1_weight, got {list(weight.shape)}"
    return None
