"""What every form of the selective SSM is given: its weights, and which shapes fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from vision_ssm.ops.conv.contract import MOST_TAPS
from vision_ssm.ops.gate import show

__all__ = ["SsmWeights", "misfit_of"]


class SsmWeights(NamedTuple):
    """What a selective SSM learns, stacked over its K directions; shapes as in :func:`vision_ssm.ops.selective_ssm`."""

    A_log: Tensor
    D: Tensor
    x_proj_weight: Tensor
    dt_proj_weight: Tensor
    dt_proj_bias: Tensor
    conv_weight: Tensor | None = None
    conv_bias: Tensor | None = None


def misfit_of(
    shapes: Mapping[str, Sequence[int] | None], directions: int, sets_looking: int, *, even: bool = False
) -> str | None:
    """Return what does not fit in the shapes of SsmWeights, for so many walks and sets of taps, or None.

    Args:
        shapes: by the names of SsmWeights; None for a weight that is not given.
        directions: K, walks.
        sets_looking: sets of taps of which it is known whether they look back.
        even: hold them to what the kernel can do with: all but A_log and the convolution has as many sets as
            dt_proj_weight, the convolution has biases, and few taps.
    """
    a_log, dt_proj, conv = shapes["A_log"], shapes["dt_proj_weight"], shapes["conv_weight"]
    if a_log is None or dt_proj is None or len(a_log) != 3 or len(dt_proj) != 3:
        return f"A_log must be [K, C, N] and dt_proj_weight [K or 1, C, R], got {show(a_log)} and {show(dt_proj)}"
    if directions < 1 or a_log[0] != directions or a_log[2] < 1:
        return (
            f"A_log must be [{directions}, C, N], a direction for each traversal and at least one of them and one "
            f"state, got {show(a_log)}"
        )
    (_, channels, states), rank = a_log, dt_proj[2]
    wanted: dict[str, tuple[int, ...]] = {
        "D": (channels,),
        "x_proj_weight": (rank + 2 * states, channels),
        "dt_proj_weight": (channels, rank),
        "dt_proj_bias": (channels,),
    }
    sets = {dt_proj[0]} & {1, directions} if even else {1, directions}
    for name, last in wanted.items():
        shape = shapes[name]
        if shape is None or len(shape) != len(last) + 1 or shape[0] not in sets or tuple(shape[1:]) != last:
            several = " or ".join(map(str, sorted(sets, reverse=True)))
            return f"{name} must be [{several}, {', '.join(map(str, last))}] to fit A_log, got {show(shape)}"
    if conv is None:
        return None
    if len(conv) != 3 or conv[1] != channels or conv[2] < 1 or (even and conv[2] > MOST_TAPS):
        return f"conv_weight must be [{sets_looking}, {channels}, taps], got {show(conv)}"
    if conv[0] != sets_looking or conv[0] not in (1, directions):
        return f"conv_weight must be [K or 1, C, T] with a set of taps for each of reverse, got {show(conv)}"
    bias = shapes["conv_bias"]
    if (bias is not None or even) and (bias is None or tuple(bias) != tuple(conv[:2])):
        return f"conv_bias must be {show(conv[:2])}, got {show(bias)}"
    return None
