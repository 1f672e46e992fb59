"""Vim's variants: every number of each, and what was published about it.

Light on purpose: this is read without torch; the model itself is imported when one is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_ssm.models.variant import SMALL_IMAGES, Origin, Variant, Weights, maps_of_a_column, pyramid_form

__all__ = ["TIMM", "VARIANTS", "features"]

ORIGIN = Origin(
    paper="arXiv:2401.09417",
    title="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
    repository="https://github.com/hustvl/Vim",
    commit="dd0358a",
    licence="apache-2.0",
)
README = "hustvl/Vim README, model weights"
PAPER = "arXiv:2401.09417v3, table 1"
LOCAL_MAMBA = "hunto/LocalMamba README"  # no Vim paper prints multiply-adds

TIMM = {"first_conv": "patch_embed.proj", "classifier": "head", "fixed_input_size": True}

# stride None: that of the patches. global_pool None: the class token's row, or the mean where there is none.
# The numbers of the released models are those of the paper's section 3.4.

# fmt: off
CLASSIFIERS = (
    Variant(
        "vim_nano", "untrained", "Vim for small images, patch 4",
        {
            "patch_size": 4, "stride": None, "embed_dim": 128, "depth": 8, "d_state": 16,
            "class_token": "middle", "global_pool": None, "direction": "bidirectional", "halve_output": True,
            "norm_layer": "rms", "layer_scale": None, "backward_step": "published", "rotary": False,
        },
        params=1_094_410, macs=80_266_496, origin=ORIGIN, inputs=SMALL_IMAGES,
    ),
    Variant(
        "vim_tiny_patch16_224", "hustvl_in1k", "Vim-Ti",
        {
            "patch_size": 16, "stride": None, "embed_dim": 192, "depth": 24, "d_state": 16,
            "class_token": "middle", "global_pool": None, "direction": "bidirectional", "halve_output": True,
            "norm_layer": "rms", "layer_scale": None, "backward_step": "published", "rotary": False,
        },
        alias="vim_tiny",
        params=7_148_008, macs=1_481_534_976, origin=ORIGIN, published_macs=1.5e9, macs_source=LOCAL_MAMBA,
        top1=76.1, top5=93.0, source=README,
        # The commit is that of the download caches in which this file is publicly recorded. None could be found for the
        # other files, so they follow the repositories' main branch.
        weights=Weights(
            "vim_t_midclstok_76p1acc.pth",
            hub="hustvl/Vim-tiny-midclstok@07c00e0e4ea2973d8e343afdd807128a57bc9fd5",
        ),
    ),
    Variant(
        "vim_tiny_patch16_stride8_224", "hustvl_ft_in1k", "Vim-Ti with overlapping patches, fine-tuned for 30 epochs",
        {
            "patch_size": 16, "stride": 8, "embed_dim": 192, "depth": 24, "d_state": 16,
            "class_token": "middle", "global_pool": None, "direction": "bidirectional", "halve_output": True,
            "norm_layer": "rms", "layer_scale": None, "backward_step": "published", "rotary": False,
        },
        params=7_250_344, macs=5_489_831_424, origin=ORIGIN,
        top1=78.3, top5=94.2, source=README,
        weights=Weights("vim_t_midclstok_ft_78p3acc.pth", hub="hustvl/Vim-tiny-midclstok"),
    ),
    Variant(
        "vim_small_patch16_224", "hustvl_in1k", "Vim-S",
        {
            "patch_size": 16, "stride": None, "embed_dim": 384, "depth": 24, "d_state": 16,
            "class_token": "middle", "global_pool": None, "direction": "bidirectional", "halve_output": True,
            "norm_layer": "rms", "layer_scale": None, "backward_step": "published", "rotary": False,
        },
        alias="vim_small",
        params=25_796_584, macs=5_141_732_352, origin=ORIGIN, published_macs=5.1e9, macs_source=LOCAL_MAMBA,
        # The figure of the released file; the paper prints 80.3.
        top1=80.5, top5=95.1, source=README,
        weights=Weights("vim_s_midclstok_80p5acc.pth", hub="hustvl/Vim-small-midclstok"),
    ),
    Variant(
        "vim_small_patch16_stride8_224", "hustvl_ft_in1k", "Vim-S with overlapping patches, fine-tuned for 30 epochs",
        {
            "patch_size": 16, "stride": 8, "embed_dim": 384, "depth": 24, "d_state": 16,
            "class_token": "middle", "global_pool": None, "direction": "bidirectional", "halve_output": True,
            "norm_layer": "rms", "layer_scale": None, "backward_step": "published", "rotary": False,
        },
        params=26_001_256, macs=19_052_878_848, origin=ORIGIN,
        # The figure of the released file; the paper prints 81.4.
        top1=81.6, top5=95.4, source=README,
        weights=Weights("vim_s_midclstok_ft_81p6acc.pth", hub="hustvl/Vim-small-midclstok"),
    ),
    Variant(
        "vim_base_patch16_224", "hustvl_in1k", "Vim-B",
        {
            "patch_size": 16, "stride": None, "embed_dim": 768, "depth": 24, "d_state": 16,
            "class_token": "middle", "global_pool": None, "direction": "bidirectional", "halve_output": True,
            "norm_layer": "rms", "layer_scale": None, "backward_step": "published", "rotary": False,
        },
        alias="vim_base",
        params=97_598_440, macs=18_998_114_304, origin=ORIGIN,
        top1=81.9, top5=95.8, source=README,
        weights=Weights("vim_b_midclstok_81p9acc.pth", hub="hustvl/Vim-base-midclstok"),
    ),
    Variant(
        "vim_base_patch16_stride8_224", "untrained", "Vim-B with overlapping patches",
        {
            "patch_size": 16, "stride": 8, "embed_dim": 768, "depth": 24, "d_state": 16,
            "class_token": "middle", "global_pool": None, "direction": "bidirectional", "halve_output": True,
            "norm_layer": "rms", "layer_scale": None, "backward_step": "published", "rotary": False,
        },
        params=98_007_784, macs=70_398_621_696, origin=ORIGIN,
        # No weights were released for this one, only the paper's figure.
        top1=83.2, source=PAPER,
    ),
)
# fmt: on


# A pyramid needs patches of 16 pixels that do not overlap.
VARIANTS = (
    *CLASSIFIERS,
    *(pyramid_form(row) for row in CLASSIFIERS if (row.options["patch_size"], row.options["stride"]) == (16, None)),
)


def features(options: Mapping[str, Any]) -> dict[str, Any]:
    """Which maps ``features_only`` gives of a model with these options: timm's ``feature_cfg``."""
    return maps_of_a_column(options, options["depth"] // (2 if options["direction"] == "layerwise" else 1))
