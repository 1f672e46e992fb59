"""Neural network parts shared by the families: patch embedding, positions, selective SSM, mixers, blocks, norms."""

from __future__ import annotations

from vision_ssm import moved
from vision_ssm.layers.blocks import Block, joins_norms, run_column, run_mirrored_pair
from vision_ssm.layers.column import try_one_call
from vision_ssm.layers.mixer import VimMixer
from vision_ssm.layers.norms import NORMS, RMSNorm, StreamLayerNorm, add_and_norm, make_norm
from vision_ssm.layers.patch_embed import PatchEmbed
from vision_ssm.layers.positions import published_interpolation, resample_grid
from vision_ssm.layers.ssm import SelectiveSSM

__all__ = [
    "NORMS",
    "Block",
    "PatchEmbed",
    "RMSNorm",
    "SelectiveSSM",
    "StreamLayerNorm",
    "VimMixer",
    "add_and_norm",
    "joins_norms",
    "make_norm",
    "published_interpolation",
    "resample_grid",
    "run_column",
    "run_mirrored_pair",
    "try_one_call",
]

moved.answer(__name__)
