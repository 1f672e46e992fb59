"""ViG's variants: every number of each, and what was published about it.

Light on purpose: this is read without torch; the model itself is imported when one is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_ssm.models.variant import SMALL_IMAGES, Origin, Variant, Weights, maps_of_a_column, pyramid_form

__all__ = ["TIMM", "VARIANTS", "features"]

ORIGIN = Origin(
    paper="arXiv:2405.18425",
    title="ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
    repository="https://github.com/hustvl/ViG",
    commit="dfb9d32",
    licence="mit",
)
README = "hustvl/ViG README"
# The README links to the repository as a whole, and what its files are called is on no record: a pattern each, which
# must fit one name, in lower case.
HUB = "hustvl/ViG"

TIMM = {"first_conv": "patch_embed.conv1", "classifier": "head", "fixed_input_size": True}

# The numbers of the released models are those of classification/configs/vig. conv_act and out_act: the tiny model's
# yaml leaves the one at its default and sets the other, those of the other two turn both off.

# fmt: off
CLASSIFIERS = (
    Variant(
        "vig_nano", "untrained", "ViG for small images, patch 4",
        {
            "patch_size": 4, "embed_dim": 128, "depth": 6, "head_dim": 32, "conv_act": True, "out_act": True,
            "global_pool": None,
        },
        params=1_693_450, macs=112_559_360, origin=ORIGIN, inputs=SMALL_IMAGES,
    ),
    Variant(
        "vig_tiny", "hustvl_in1k", "ViG-T",
        {
            "patch_size": 16, "embed_dim": 192, "depth": 12, "head_dim": 64, "conv_act": True, "out_act": True,
            "global_pool": None,
        },
        params=5_834_536, macs=1_196_663_808, origin=ORIGIN, top1=77.2, source=README,
        weights=Weights("*vig[-_]t*", hub=HUB),
    ),
    Variant(
        "vig_small", "hustvl_in1k", "ViG-S",
        {
            "patch_size": 16, "embed_dim": 384, "depth": 12, "head_dim": 64, "conv_act": False, "out_act": False,
            "global_pool": None,
        },
        params=22_615_144, macs=4_539_254_784, origin=ORIGIN, top1=81.7, source=README,
        weights=Weights("*vig[-_]s*", hub=HUB),
    ),
    Variant(
        "vig_base", "hustvl_in1k", "ViG-B",
        {
            "patch_size": 16, "embed_dim": 768, "depth": 12, "head_dim": 64, "conv_act": False, "out_act": False,
            "global_pool": None,
        },
        params=89_022_184, macs=17_662_218_240, origin=ORIGIN, top1=82.6, source=README,
        weights=Weights("*vig[-_]b*", hub=HUB),
    ),
)
# fmt: on

# A pyramid needs patches of 16 pixels.
VARIANTS = (*CLASSIFIERS, *(pyramid_form(row) for row in CLASSIFIERS if row.options["patch_size"] == 16))


def features(options: Mapping[str, Any]) -> dict[str, Any]:
    """Which maps ``features_only`` gives of a model with these options: timm's ``feature_cfg``."""
    return maps_of_a_column(options, options["depth"])
