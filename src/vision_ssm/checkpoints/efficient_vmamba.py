"""The published EfficientVMamba checkpoints' layout and ours, as pure functions from dict to dict.

Published: layers.{0,1}.blocks.{j} with their downsampling behind them; layers.{2,3} as flat lists that begin and, in
layers.2, end with a parameterless permutation, so blocks count from 1 and the downsampling follows at depth + 2. Ours:
stages.{i}.blocks.{j}, every stage behind its own downsampling, and the four groups of a scan on an axis of their own.
Both directions of the mapping only rename and reshape, so they carry gradients and optimiser moments as well as
weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vision_ssm.checkpoints.naming import inverse, replaced
from vision_ssm.errors import CheckpointError

__all__ = ["is_published", "to_ours", "to_published"]

GROUPS = 4
LISTED = (2, 3)  # stages whose published form is a flat list

# Published -> ours, by the beginning of what follows the name of the model, of a block, and of a downsampling.
_TOP = {
    "patch_embed.0": "patch_embed.conv1",
    "patch_embed.2": "patch_embed.norm1",
    "classifier.norm": "norm",
    "classifier.head": "head.fc",
    **{f"outnorm{i}": f"stage_norms.{i}" for i in range(4)},
}
_BLOCK = {
    "op.x_proj_weight": "mixer.ssm.x_proj_weight",
    "op.dt_projs_weight": "mixer.ssm.dt_proj_weight",
    "op.dt_projs_bias": "mixer.ssm.dt_proj_bias",
    "op.A_logs": "mixer.ssm.A_log",
    "op.Ds": "mixer.ssm.D",
    "op.conv2d": "mixer.conv",
    "op": "mixer",
    "se.global_reduce": "se.reduce",
    "se.channel_select": "se.expand",
    "conv_branch.0": "branch_dw",
    "conv_branch.1": "branch_norm",
    "conv_branch.3": "branch_pw",
    "conv_pw.0": "conv_pw",
    "conv_pw.1": "bn1",
    "conv_dw.0": "conv_dw",
    "conv_dw.1": "bn2",
    "conv_pw2.0": "conv_pwl",
    "conv_pw2.1": "bn3",
}
_CONVOLUTION = {"1": "conv", "3": "norm"}  # a downsampling; patch merging has our names
_FLAT = ("mixer.ssm.A_log", "mixer.ssm.D")  # published with groups and channels in one axis

_IN_LIST = re.compile(r"layers\.([23])\.(\d+)\.(.+)")
_IN_BLOCK = re.compile(r"layers\.([01]\.blocks\.\d+)\.(.+)")
_IN_DOWNSAMPLE = re.compile(r"layers\.([01])\.downsample\.(.+)")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are the published layout's."""
    return any(name.startswith(("layers.", "classifier.", "outnorm")) for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map published names and shapes to ours; a dict that is ours already comes back unchanged.

    Raises:
        CheckpointError: the rows of a scan parameter do not divide into four groups.
    """
    if not is_published(state):
        return dict(state)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = _our_name(name)
        if found.endswith(_FLAT):
            if tensor.shape[0] % GROUPS:
                raise CheckpointError(f"{name} has {tensor.shape[0]} rows, which are not {GROUPS} groups of one size")
            ours[found] = tensor.reshape(GROUPS, -1, *tensor.shape[1:])
        else:
            ours[found] = tensor
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map our names and shapes to the published ones; a dict that is published already comes back unchanged."""
    if is_published(state):
        return dict(state)
    numbers = [re.match(r"stages\.2\.blocks\.(\d+)\.", name) for name in state]
    after_blocks = 3 + max((int(number[1]) for number in numbers if number), default=-1)
    convolutional = any(".downsample.conv." in name for name in state)
    return {
        _published_name(name, after_blocks, convolutional): tensor.flatten(0, 1) if name.endswith(_FLAT) else tensor
        for name, tensor in state.items()
    }


def _our_name(name: str) -> str:
    if within := _IN_LIST.fullmatch(name):
        i, j, inside = int(within[1]), int(within[2]), within[3]
        if inside.startswith(("conv_", "se.")):
            return f"stages.{i}.blocks.{j - 1}.{replaced(inside, _BLOCK)}"
        return f"stages.{i + 1}.downsample.{replaced(inside, _CONVOLUTION)}"
    if within := _IN_BLOCK.fullmatch(name):
        return f"stages.{within[1]}.{replaced(within[2], _BLOCK)}"
    if within := _IN_DOWNSAMPLE.fullmatch(name):
        return f"stages.{int(within[1]) + 1}.downsample.{replaced(within[2], _CONVOLUTION)}"
    return replaced(name, _TOP)


def _published_name(name: str, after_blocks: int, convolutional: bool) -> str:
    """``after_blocks``: number of the downsampling in layers.2; ``convolutional``: whether it is a convolution."""
    stage = re.match(r"stages\.(\d)\.(?:downsample|blocks\.(\d+))\.(.+)", name)
    if stage is None:
        return replaced(name, inverse(_TOP))
    i, block, inside = int(stage[1]), stage[2], stage[3]
    if block is None:
        place = f"{i - 1}.{after_blocks if i - 1 in LISTED else 'downsample'}"
        return f"layers.{place}.{replaced(inside, inverse(_CONVOLUTION)) if convolutional else inside}"
    place = f"{int(block) + 1}" if i in LISTED else f"blocks.{block}"
    return f"layers.{i}.{place}.{replaced(inside, inverse(_BLOCK))}"
