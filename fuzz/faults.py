"""What a broken promise is called, and how outcomes of two ways to one result are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.errors import VisionSSMError

__all__ = ["Fault", "Outcome", "compare", "outcome_of"]


class Fault(Exception):
    """A promise was broken."""


class Outcome(NamedTuple):
    """A call's value, or the error that it ended in."""

    value: Any
    error: Exception | None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__name__}: {str(self.error)[:300]}"
        shape = list(self.value.shape) if isinstance(self.value, Tensor) else ""
        return f"{type(self.value).__name__} {shape}"


def outcome_of(call: Callable[[], Any]) -> Outcome:
    """Call, and catch what comes: any error may, and is compared or judged by the caller."""
    try:
        return Outcome(call(), None)
    except Exception as error:  # noqa: BLE001
        return Outcome(None, error)


def compare(found: Outcome, right: Outcome, tolerance: float) -> None:
    """Raise Fault unless both ways give the same within rounding, or refuse with the same kind of error.

    ``tolerance`` is of the largest value.
    """
    if (found.error is None) != (right.error is None):
        raise Fault(f"got {found}, where the reference gives {right}")
    if found.error is not None or right.error is not None:
        ours = isinstance(found.error, VisionSSMError) or isinstance(right.error, VisionSSMError)
        if ours and type(found.error) is not type(right.error):
            raise Fault(f"refused with {found}, by the reference with {right}")
        return
    for ours, theirs in zip(_tensors(found.value), _tensors(right.value), strict=True):
        _same(ours, theirs, tolerance)


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for t in value if isinstance(t, Tensor)]


def _same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    if (ours.shape, ours.dtype, ours.device) != (theirs.shape, theirs.dtype, theirs.device):
        raise Fault(f"got {ours.shape} {ours.dtype} {ours.device}, not {theirs.shape} {theirs.dtype} {theirs.device}")
    if ours.is_meta or ours.numel() == 0:
        return
    a, b = ours.detach().double(), theirs.detach().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        raise Fault(f"finite in {a.isfinite().sum()} places, not in {b.isfinite().sum()} of {a.numel()}")
    a, b = a[a.isfinite()], b[b.isfinite()]
    error, scale = (a - b).abs().max().item() if len(a) else 0.0, b.abs().max().item() if len(b) else 0.0
    if error > tolerance * max(scale, 0.1):
        raise Fault(f"differs by {error:.2e} where values reach {scale:.2e}")
