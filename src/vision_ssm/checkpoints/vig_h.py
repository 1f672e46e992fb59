"""The published ViG-H checkpoints' layout and ours, as pure functions from dict to dict.

Published: layers.{i}.blocks.{j}.op.* with the downsampling at the end of a stage, and numbered parts of sequences.
Ours: stages.{i}.blocks.{j}.mixer.* with the downsampling at the head of the next stage. The mapping only renames and
reshapes, so it carries gradients and optimiser moments as well as weights. Older spellings are read, and weights that
were saved as 1 x 1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vision_ssm.checkpoints.naming import inverse, replaced

__all__ = ["canonical", "is_published", "to_ours", "to_published"]

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
    "op.in_proj.0": "mixer.conv",
    "op.gk_proj.0": "mixer.gate_down",
    "op.gk_proj.1": "mixer.gate_up",
}
_DOWNSAMPLE = {"1": "conv", "3": "norm"}

# Older spelling -> the current one, in the same places.
_OLDER_TOP = {
    "patch_embed.proj": "patch_embed.0",
    "patch_embed.norm": "patch_embed.2",
    "norm": "classifier.norm",
    "head": "classifier.head",
}
_OLDER_BLOCK = {"ln_1": "norm", "self_attention": "op"}

_IN_BLOCK = re.compile(r"(?:layers|stages)\.(\d+\.blocks\.\d+)\.(.+)")
_IN_DOWNSAMPLE = re.compile(r"(?:layers|stages)\.(\d+)\.downsample\.(.+)")
_LINEAR = re.compile(r"\.(?:qkv_proj|gk_proj\.[01]|[go]_proj|fc1|fc2|head)\.weight$")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are the published layout's, in either spelling."""
    return any(name.startswith(("layers.", "classifier.", "outnorm")) for name in state)


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rewrite older published spellings and shapes in the current ones; a dict of our own comes back unchanged."""
    if not is_published(state):
        return dict(state)
    current = {}
    for name, x in state.items():
        found = _current_name(name)
        current[found] = x.flatten(1) if _LINEAR.search(found) and tuple(x.shape[2:]) == (1, 1) else x
    return current


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map published names and shapes to ours; a dict that is ours already comes back unchanged."""
    if not is_published(state):
        return dict(state)
    ours = {}
    for name, x in canonical(state).items():
        if within := _IN_BLOCK.fullmatch(name):
            ours[f"stages.{within[1]}.{replaced(within[2], _BLOCK)}"] = x
        elif within := _IN_DOWNSAMPLE.fullmatch(name):
            ours[f"stages.{int(within[1]) + 1}.downsample.{replaced(within[2], _DOWNSAMPLE)}"] = x
        else:
            ours[replaced(name, _TOP)] = x
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map our names and shapes to the published ones; a dict that is published already comes back unchanged."""
    if is_published(state):
        return dict(state)
    published = {}
    for name, x in state.items():
        if within := _IN_BLOCK.fullmatch(name):
            published[f"layers.{within[1]}.{replaced(within[2], inverse(_BLOCK))}"] = x
        elif within := _IN_DOWNSAMPLE.fullmatch(name):
            place = replaced(within[2], inverse(_DOWNSAMPLE))
            published[f"layers.{int(within[1]) - 1}.downsample.{place}"] = x
        else:
            published[replaced(name, inverse(_TOP))] = x
    return published


def _current_name(name: str) -> str:
    if within := _IN_BLOCK.fullmatch(name):
        return f"layers.{within[1]}.{replaced(within[2], _OLDER_BLOCK)}"
    return name if name.startswith("layers.") else replaced(name, _OLDER_TOP)
