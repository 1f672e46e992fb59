"""Depthwise causal convolution along the token sequence, in one or both directions, channel-last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.errors import ShapeError

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    reverse: Sequence[bool] = (False,),
    activation: bool = True,
) -> Tensor:
    """Convolve every channel with its own taps, looking back only; one result per direction.

    Args:
        x: tokens, [B, L, C].
        weight: taps from the oldest to the newest token, [K, C, T].
        bias: [K, C].
        reverse: for each of the K directions, whether "back" means towards the end of the sequence.
        activation: apply SiLU to the result.

    Returns:
        [B, K, L, C] in x's dtype, every result at its own token.

    Raises:
        ShapeError: the shapes do not fit.

    Source: the conv1d of Mamba's block (arXiv:2312.00752, fig. 3); zero padding before the first token.
    """
    if x.dim() != 3 or weight.dim() != 3 or weight.shape[:2] != (len(reverse), x.shape[2]):
        raise ShapeError(
            f"causal_conv1d expects x [B, L, C] and weight [{len(reverse)}, C, T], "
            f"got x {list(x.shape)}, weight {list(weight.shape)}"
        )
    tokens, taps = x.shape[1], weight.shape[2]
    past = taps - 1
    padded = F.pad(x, (0, 0, past, past))
    results = []
    for k, backwards in enumerate(reverse):
        # Tap j reaches `past - j` tokens back; going backwards the mirrored window is read with the taps mirrored.
        y = None if bias is None else bias[k].to(x.dtype)
        for tap in range(taps):
            first = 2 * past - tap if backwards else tap
            window, tap_weight = padded[:, first : first + tokens], weight[k, :, tap].to(x.dtype)
            y = window * tap_weight if y is None else torch.addcmul(y, window, tap_weight)
        results.append(F.silu(y) if activation else y)
    return torch.stack(results, 1)
