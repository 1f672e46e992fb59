"""The published Vim checkpoints' layout and ours, as pure functions from dict to dict.

Published: layers.{i}.mixer.* with one tensor per direction (A_log and A_b_log, conv1d and conv1d_b, ...). Ours:
blocks.{i}.mixer.* with the directions stacked. Both directions of the mapping only rename, stack and reshape, so they
carry gradients and optimiser moments as well as weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vision_ssm.errors import CheckpointError

__all__ = ["is_published", "to_ours", "to_published"]

# Ours -> the published name of the first direction and of the backward one.
_STACKED = {
    "ssm.A_log": ("A_log", "A_b_log"),
    "ssm.D": ("D", "D_b"),
    "ssm.x_proj_weight": ("x_proj.weight", "x_proj_b.weight"),
    "ssm.dt_proj_weight": ("dt_proj.weight", "dt_proj_b.weight"),
    "ssm.dt_proj_bias": ("dt_proj.bias", "dt_proj_b.bias"),
    "conv_weight": ("conv1d.weight", "conv1d_b.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias"),
}
_PUBLISHED = {published: (ours, k) for ours, names in _STACKED.items() for k, published in enumerate(names)}


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are the published layout's."""
    return any(name.startswith(("layers.", "norm_f.", "rope.")) for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map published names and shapes to ours; a dict that is ours already comes back unchanged.

    Raises:
        CheckpointError: the weights belong to a model with rotary embeddings, or a backward tensor has no partner.
    """
    if not is_published(state):
        return dict(state)
    rotary = sorted(name for name in state if name.startswith("rope."))
    if rotary:
        raise CheckpointError(
            f"these weights belong to a Vim with rotary position embeddings (they hold {', '.join(rotary)}), which no "
            "released classifier has. If this is the model that you mean, build it with class_token='none' and "
            "rotary=True and leave these tables out, which it computes; else use a released file, such as "
            "vim_t_midclstok_76p1acc.pth."
        )
    ours: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        if head == "norm_f":
            ours[f"norm.{rest}"] = tensor
            continue
        if head != "layers":
            ours[name] = tensor
            continue
        index, _, inside = rest.partition(".")
        stacked = _PUBLISHED.get(inside.removeprefix("mixer.")) if inside.startswith("mixer.") else None
        if stacked is None:
            ours[f"blocks.{index}.{inside}"] = tensor
        else:
            target, direction = stacked
            one = tensor.squeeze(1) if target == "conv_weight" else tensor
            stacks.setdefault(f"blocks.{index}.mixer.{target}", {})[direction] = one
    for name, parts in stacks.items():
        if 0 not in parts:
            raise CheckpointError(f"{name}: the backward direction is there, the forward one is missing")
        if len({tuple(part.shape) for part in parts.values()}) > 1:
            shapes = ", ".join(str(list(part.shape)) for part in parts.values())
            raise CheckpointError(f"{name}: the two directions differ in shape: {shapes}")
        ours[name] = torch.stack([parts[k] for k in sorted(parts)])
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map our names and shapes to the published ones; a dict that is published already comes back unchanged."""
    if is_published(state):
        return dict(state)
    published: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        if head == "norm":
            published[f"norm_f.{rest}"] = tensor
            continue
        if head != "blocks":
            published[name] = tensor
            continue
        index, _, inside = rest.partition(".")
        names = _STACKED.get(inside.removeprefix("mixer.")) if inside.startswith("mixer.") else None
        if names is None:
            published[f"layers.{index}.{inside}"] = tensor
            continue
        for direction, one in zip(names, tensor.unbind(0), strict=False):
            shaped = one.unsqueeze(1) if direction.startswith("conv1d") and one.dim() == 2 else one
            published[f"layers.{index}.mixer.{direction}"] = shaped
    return published
