"""The published DiG checkpoints' layout and ours, as pure functions from dict to dict.

Published: DiT's names around blocks.{i}.attn.* with numbered parts of sequences. Ours: blocks.{i}.mixer.*. The mapping
only renames, so it carries gradients and optimiser moments as well as weights. A file holds 'model' and 'ema'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vision_ssm.checkpoints.naming import inverse, replaced_in_blocks

__all__ = ["is_published", "to_ours", "to_published"]

# Published -> ours, by the beginning of what follows the name of the model and of a block.
_TOP = {
    "x_embedder": "patch_embed",
    "t_embedder.mlp.0": "t_embed.fc1",
    "t_embedder.mlp.2": "t_embed.fc2",
    "y_embedder.embedding_table": "y_embed.table",
    "final_layer.linear": "output.linear",
    "final_layer.adaLN_modulation.1": "output.modulation",
}
_BLOCK = {
    "attn": "mixer",
    "attn.gk_proj.0": "mixer.gate_down",
    "attn.gk_proj.1": "mixer.gate_up",
    "attn.g_norm_swish_gate": "mixer.norm",
    "mlp.gate_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
    "adaLN_modulation.1": "modulation",
    "dw_conv": "conv",
    "skip_linear": "skip",
}


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are the published layout's."""
    return any(re.match(r"[xty]_embedder\.|final_layer\.|blocks\.\d+\.(attn|adaLN)", name) for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map published names to ours; a dict that is ours already comes back unchanged."""
    return {replaced_in_blocks(name, _TOP, _BLOCK): x for name, x in state.items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map our names to the published ones; a dict that is published already comes back unchanged."""
    if is_published(state):
        return dict(state)
    return {replaced_in_blocks(name, inverse(_TOP), inverse(_BLOCK)): x for name, x in state.items()}
