"""DiG's variants: every number of each.

Light on purpose: this is read without torch; the model itself is imported when one is built.
"""

from __future__ import annotations

from typing import Any

from vision_ssm.models.variant import Autoencoder, Denoiser, Origin

__all__ = ["VARIANTS"]

ORIGIN = Origin(
    paper="arXiv:2405.18428",
    title="DiG: Scalable and Efficient Diffusion Models with Gated Linear Attention",
    repository="https://github.com/hustvl/DiG",
    commit="e3ac0ba",
    licence="mit",
)

# train.py and train-multi-nodes.py: the autoencoder of --vae ema, whose latents are multiplied by 0.18215.
AUTOENCODER = Autoencoder("stabilityai/sd-vae-ft-ema", scale=0.18215, reduction=8)


def _options(size: int, in_chans: int, classes: int, embed_dim: int, depth: int, head_dim: int) -> dict[str, Any]:
    return {
        "img_size": size, "patch_size": 2, "in_chans": in_chans, "num_classes": classes, "embed_dim": embed_dim,
        "depth": depth, "head_dim": head_dim, "learn_sigma": True, "skip": False, "skip_zero": False,
    }  # fmt: skip


def _published(name: str, summary: str, embed_dim: int, depth: int, params: int, macs: int) -> Denoiser:
    """A model of models_dig.py, DiG-S/2-bid-layer-dwconv-qdir and so on; -skip and -skipzero are options here."""
    options = _options(32, 4, 1000, embed_dim, depth, 64)
    return Denoiser(name, summary, options, params=params, macs=macs, origin=ORIGIN, autoencoder=AUTOENCODER)


VARIANTS = (
    Denoiser(
        "dig_nano", "DiG for the pixels of small images", _options(32, 3, 10, 96, 4, 32),
        params=761_048, macs=122_366_976, origin=ORIGIN,
    ),
    _published("dig_s2", "DiG-S/2", 384, 12, 33_081_632, 5_603_868_672),
    _published("dig_b2", "DiG-B/2", 768, 12, 130_748_192, 22_101_491_712),
    _published("dig_l2", "DiG-L/2", 1024, 24, 465_022_496, 79_898_607_616),
    _published("dig_xl2", "DiG-XL/2", 1152, 28, 675_953_952, 115_458_785_280),
)  # fmt: skip
