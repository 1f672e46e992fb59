"""The published VMamba checkpoints' layout and ours, as pure functions from dict to dict.

Published: layers.{i}.blocks.{j}.op.* with the channels of the four directions in one axis, the downsampling at the end
of a stage, and numbered parts of the stem. Ours: stages.{i}.blocks.{j}.mixer.ssm.* with the directions on an axis of
their own, and the downsampling at the head of the next stage. The mapping only renames and reshapes, so it carries
gradients and optimiser moments as well as weights.

Three published spellings are read: that of classification/models/vmamba.py, which :func:`to_published` writes; the
older one of the first release's files; and that of the repository's single file vmamba.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from vision_ssm.checkpoints.naming import inverse, replaced
from vision_ssm.errors import CheckpointError

__all__ = ["canonical", "is_published", "to_ours", "to_published"]

DIRECTIONS = 4

# Published -> ours, by the beginning of what follows the name of the model, of a block, and of a downsampling.
_TOP = {
    "patch_embed.0": "patch_embed.conv1",
    "patch_embed.2": "patch_embed.norm1",
    "patch_embed.5": "patch_embed.conv2",
    "patch_embed.7": "patch_embed.norm2",
    "classifier.norm": "norm",
    "classifier.head": "head.fc",
    **{f"outnorm{i}": f"stage_norms.{i}" for i in range(4)},
}
_BLOCK = {
    "op": "mixer",
    "op.x_proj_weight": "mixer.ssm.x_proj_weight",
    "op.dt_projs_weight": "mixer.ssm.dt_proj_weight",
    "op.dt_projs_bias": "mixer.ssm.dt_proj_bias",
    "op.A_logs": "mixer.ssm.A_log",
    "op.Ds": "mixer.ssm.D",
    "op.conv2d": "mixer.conv",
}
_CONVOLUTION = {"1": "conv", "3": "norm"}  # a downsampling; patch merging has our names
# What follows the scan, where that is a convolution; the numbers count a permutation too.
_CONV_AFTER = {"op.out_norm.1": "mixer.out_conv"}
_NORM_AND_CONV_AFTER = {"op.out_norm.0": "mixer.out_norm", "op.out_norm.2": "mixer.out_conv"}
_FLAT = (".ssm.A_log", ".ssm.D")  # published with directions and channels in one axis

# Older or single-file spelling -> the current one, in the same places.
_OLDER_TOP = {
    "patch_embed.proj": "patch_embed.0",
    "patch_embed.norm": "patch_embed.2",
    "norm": "classifier.norm",
    "head": "classifier.head",
}
_OLDER_BLOCK = {
    "ln_1": "norm",
    "self_attention": "op",
    "op.x_proj.weight": "op.x_proj_weight",
    "op.dt_projs.weight": "op.dt_projs_weight",
}
_OLDER_MERGING = {"1": "norm", "2": "reduction"}

_IN_BLOCK = re.compile(r"((?:layers|stages)\.\d+\.blocks\.\d+)\.(.+)")
_IN_DOWNSAMPLE = re.compile(r"(?:layers|stages)\.(\d+)\.downsample\.(.+)")
_LINEAR = re.compile(r"\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are of a published layout, in whichever spelling."""
    return any(name.startswith(("layers.", "classifier.", "outnorm")) for name in state)


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rewrite older published spellings and shapes in the current ones; a dict of our own comes back unchanged."""
    if not is_published(state):
        return dict(state)
    merging = any(re.fullmatch(r"layers\.\d+\.downsample\.2\.weight", name) for name in state)
    current = {}
    for name, tensor in state.items():
        found = _current_name(name, merging)
        if found.endswith(("proj_weight", "projs_weight")) and tensor.dim() == 2 and not tensor.shape[0] % DIRECTIONS:
            current[found] = tensor.reshape(DIRECTIONS, -1, *tensor.shape[1:])
        elif _LINEAR.search(found) and tuple(tensor.shape[2:]) == (1, 1):
            current[found] = tensor.flatten(1)  # was a 1 x 1 convolution
        else:
            current[found] = tensor
    return current


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map published names and shapes to ours; a dict that is ours already comes back unchanged.

    Raises:
        CheckpointError: the rows of a scan parameter do not divide into four directions.
    """
    if not is_published(state):
        return dict(state)
    current = canonical(state)
    block = {**_BLOCK, **_after_scan(current)}
    ours = {}
    for name, tensor in current.items():
        found = _our_name(name, block)
        if not found.endswith(_FLAT):
            ours[found] = tensor
        elif tensor.shape[0] % DIRECTIONS:
            raise CheckpointError(f"{name} has {tensor.shape[0]} rows, which are not {DIRECTIONS} of one size")
        else:
            ours[found] = tensor.reshape(DIRECTIONS, -1, *tensor.shape[1:])
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map our names and shapes to the published ones; a dict that is published already comes back unchanged."""
    if is_published(state):
        return dict(state)
    block = inverse({**_BLOCK, **_after_scan(state)})
    downsample = inverse(_CONVOLUTION) if any(".downsample.conv." in name for name in state) else {}
    return {
        _published_name(name, block, downsample): tensor.flatten(0, 1) if name.endswith(_FLAT) else tensor
        for name, tensor in state.items()
    }


def _current_name(name: str, merging: bool) -> str:
    """``merging``: the downsampling is the single file's patch merging, whose parts are numbered."""
    if within := _IN_BLOCK.fullmatch(name):
        inside = replaced(within[2], _OLDER_BLOCK)
        return f"{within[1]}.{inside}"
    if within := _IN_DOWNSAMPLE.fullmatch(name):
        return f"layers.{within[1]}.downsample.{replaced(within[2], _OLDER_MERGING if merging else {})}"
    return replaced(name, _OLDER_TOP)


def _our_name(name: str, block: Mapping[str, str]) -> str:
    if within := _IN_BLOCK.fullmatch(name):
        return f"stages{within[1].removeprefix('layers')}.{replaced(within[2], block)}"
    if within := _IN_DOWNSAMPLE.fullmatch(name):
        return f"stages.{int(within[1]) + 1}.downsample.{replaced(within[2], _CONVOLUTION)}"
    return replaced(name, _TOP)


def _published_name(name: str, block: Mapping[str, str], downsample: Mapping[str, str]) -> str:
    if within := _IN_BLOCK.fullmatch(name):
        return f"layers{within[1].removeprefix('stages')}.{replaced(within[2], block)}"
    if within := _IN_DOWNSAMPLE.fullmatch(name):
        return f"layers.{int(within[1]) - 1}.downsample.{replaced(within[2], downsample)}"
    return replaced(name, inverse(_TOP))


def _after_scan(names: Iterable[str]) -> Mapping[str, str]:
    """The names of what follows the scan, in a dict of either layout."""
    if any(name.endswith((".op.out_norm.1.weight", ".mixer.out_conv.weight")) for name in names):
        both = any(name.endswith((".op.out_norm.0.weight", ".mixer.out_norm.weight")) for name in names)
        return _NORM_AND_CONV_AFTER if both else _CONV_AFTER
    return _NORM_AND_CONV_AFTER if any(name.endswith(".op.out_norm.2.weight") for name in names) else {}
