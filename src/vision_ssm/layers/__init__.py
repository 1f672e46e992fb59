"""Neural network parts shared by the families: patch embedding, positions, selective SSM, mixers, blocks, norms."""

from __future__ import annotations

from vision_ssm import moved
from vision_ssm.layers.blocks import Block, run_mirrored_pair
from vision_ssm.layers.mixer import VimMixer
from vision_ssm.layers.norms import NORMS, RMSNorm, StreamLayerNorm, make_norm
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
    "make_norm",
    "published_interpolation",
    "resample_grid",
    "run_mirrored_pair",
]

moved.answer(__name__)
