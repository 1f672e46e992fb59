"""The published ViG checkpoints' layout and ours, as pure functions from dict to dict.

Published: blocks.{i}.attn.* with numbered parts of sequences, and attn_norm, mlp_norm beside. Ours: blocks.{i}.mixer.*,
norm and norm2. The mapping only renames and reshapes, so it carries gradients and optimiser moments as well as weights.
Weights that were saved as 1 x 1 convolutions are read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vision_ssm.checkpoints.naming import inverse, replaced_in_blocks

__all__ = ["canonical", "is_published", "to_ours", "to_published"]

# Published -> ours, by the beginning of what follows the name of the model and of a block.
_TOP = {
    "patch_embed.proj.0": "patch_embed.conv1",
    "patch_embed.proj.1": "patch_embed.norm1",
    "patch_embed.proj.3": "patch_embed.conv2",
    "patch_embed.proj.4": "patch_embed.norm2",
}
_BLOCK = {
    "attn_norm": "norm",
    "attn": "mixer",
    "attn.in_proj.0": "mixer.conv",
    "attn.gk_proj.0": "mixer.gate_down",
    "attn.gk_proj.1": "mixer.gate_up",
    "mlp_norm": "norm2",
    "mlp.gate_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}

_LINEAR = re.compile(r"(?:qkv_proj|gk_proj\.[01]|[go]_proj|gate_proj|down_proj|head)\.weight")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are the published layout's."""
    return any(re.match(r"patch_embed\.proj\.\d|blocks\.\d+\.attn", name) for name in state)


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make matrices of published 1 x 1 convolutions; a dict of our own comes back unchanged."""
    if not is_published(state):
        return dict(state)
    return {
        name: x.flatten(1) if _LINEAR.search(name) and tuple(x.shape[2:]) == (1, 1) else x for name, x in state.items()
    }


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map published names and shapes to ours; a dict that is ours already comes back unchanged."""
    return {replaced_in_blocks(name, _TOP, _BLOCK): x for name, x in canonical(state).items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map our names and shapes to the published ones; a dict that is published already comes back unchanged."""
    if is_published(state):
        return dict(state)
    return {replaced_in_blocks(name, inverse(_TOP), inverse(_BLOCK)): x for name, x in state.items()}
