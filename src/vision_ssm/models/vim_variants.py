"""The table of Vim variants and their registration with timm.

Light on purpose: this is imported as soon as timm is, so the model itself is imported when one is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from timm.models import generate_default_cfgs, register_model

from vision_ssm.models.building import build, imagenet_cfg, merged_options, small_image_cfg

if TYPE_CHECKING:
    from torch import nn

__all__: list[str] = []  # register_model appends the variants

# Width per size; depth 24, 16 states and everything else are the defaults of Vim (paper, section 3.4).
WIDTHS = {"tiny": 192, "small": 384, "base": 768}


def _cfg(**values: Any) -> dict[str, Any]:
    return {
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2401.09417",
        "paper_name": "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        "origin_url": "https://github.com/hustvl/Vim",
        **values,
    }


def _in1k(**values: Any) -> dict[str, Any]:
    return imagenet_cfg(**_cfg(**values))


# The revision is that of the download caches in which vim_t_midclstok_76p1acc.pth is publicly recorded. None could be
# found for the other files, so they follow the repositories' main branch.
_TINY = _in1k(
    hf_hub_id="hustvl/Vim-tiny-midclstok@07c00e0e4ea2973d8e343afdd807128a57bc9fd5",
    hf_hub_filename="vim_t_midclstok_76p1acc.pth",
)
_TINY_FINE = _in1k(hf_hub_id="hustvl/Vim-tiny-midclstok", hf_hub_filename="vim_t_midclstok_ft_78p3acc.pth")
_SMALL = _in1k(hf_hub_id="hustvl/Vim-small-midclstok", hf_hub_filename="vim_s_midclstok_80p5acc.pth")
_SMALL_FINE = _in1k(hf_hub_id="hustvl/Vim-small-midclstok", hf_hub_filename="vim_s_midclstok_ft_81p6acc.pth")
_BASE = _in1k(hf_hub_id="hustvl/Vim-base-midclstok", hf_hub_filename="vim_b_midclstok_81p9acc.pth")
_NANO = small_image_cfg(**_cfg(origin_url=None))

default_cfgs = generate_default_cfgs(
    {
        "vim_nano.untrained": _NANO,
        "vim_tiny_patch16_224.hustvl_in1k": _TINY,
        "vim_tiny_patch16_stride8_224.hustvl_ft_in1k": _TINY_FINE,
        "vim_small_patch16_224.hustvl_in1k": _SMALL,
        "vim_small_patch16_stride8_224.hustvl_ft_in1k": _SMALL_FINE,
        "vim_base_patch16_224.hustvl_in1k": _BASE,
        "vim_base_patch16_stride8_224.untrained": _in1k(),
        "vim_tiny_patch16_224_pyramid.hustvl_in1k": _TINY,
        "vim_small_patch16_224_pyramid.hustvl_in1k": _SMALL,
        "vim_base_patch16_224_pyramid.hustvl_in1k": _BASE,
    }
)


def _create(variant: str, pretrained: bool, given: Mapping[str, Any], **row: Any) -> nn.Module:
    """Build a variant from its row of the table, overridden by the options given."""
    from vision_ssm.models.pyramid import FeaturePyramid, quarter_taps
    from vision_ssm.models.vim import Vim

    options = merged_options(Vim, variant, row, given)
    pyramid = options.get("feature_cls") in ("pyramid", FeaturePyramid)
    if pyramid:
        options["feature_cls"] = FeaturePyramid
    steps = options.get("depth", 24) // (2 if options.get("direction") == "layerwise" else 1)
    return build(
        Vim,
        variant,
        pretrained,
        options,
        out_indices=(0, 1, 2, 3) if pyramid else quarter_taps(steps),
    )


@register_model
def vim_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim for small images: 32 pixels, patch 4, 1.09 M parameters with 10 classes."""
    return _create("vim_nano", pretrained, kwargs, patch_size=4, embed_dim=128, depth=8)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti: 7.1 M parameters, 76.1 % top-1."""
    return _create("vim_tiny_patch16_224", pretrained, kwargs, embed_dim=WIDTHS["tiny"])


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti with overlapping patches, fine-tuned for 30 epochs: 78.3 % top-1."""
    return _create("vim_tiny_patch16_stride8_224", pretrained, kwargs, embed_dim=WIDTHS["tiny"], stride=8)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S: 25.8 M parameters, 80.5 % top-1."""
    return _create("vim_small_patch16_224", pretrained, kwargs, embed_dim=WIDTHS["small"])


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S with overlapping patches, fine-tuned for 30 epochs: 81.6 % top-1."""
    return _create("vim_small_patch16_stride8_224", pretrained, kwargs, embed_dim=WIDTHS["small"], stride=8)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-B: 97.6 M parameters, 81.9 % top-1."""
    return _create("vim_base_patch16_224", pretrained, kwargs, embed_dim=WIDTHS["base"])


@register_model
def vim_base_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-B with overlapping patches; no weights were released."""
    return _create("vim_base_patch16_stride8_224", pretrained, kwargs, embed_dim=WIDTHS["base"], stride=8)


# Code that takes a model by name only (segmentation_models_pytorch's 'tu-...', transformers' TimmBackbone) and wants
# strides 4, 8, 16 and 32 finds them here; with features_only=False they are the plain classifiers.


@register_model
def vim_tiny_patch16_224_pyramid(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti whose ``features_only`` form is a 4/8/16/32 pyramid."""
    row = {"embed_dim": WIDTHS["tiny"], "feature_cls": "pyramid"}
    return _create("vim_tiny_patch16_224_pyramid", pretrained, kwargs, **row)


@register_model
def vim_small_patch16_224_pyramid(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S whose ``features_only`` form is a 4/8/16/32 pyramid."""
    row = {"embed_dim": WIDTHS["small"], "feature_cls": "pyramid"}
    return _create("vim_small_patch16_224_pyramid", pretrained, kwargs, **row)


@register_model
def vim_base_patch16_224_pyramid(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-B whose ``features_only`` form is a 4/8/16/32 pyramid."""
    row = {"embed_dim": WIDTHS["base"], "feature_cls": "pyramid"}
    return _create("vim_base_patch16_224_pyramid", pretrained, kwargs, **row)
