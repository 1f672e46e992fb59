"""What every backend of the convolution is given, beside tensors."""

from __future__ import annotations

__all__ = ["MOST_TAPS"]

MOST_TAPS = 8  # that kernels take, by csrc's MOST_TAPS; the reference takes any number
