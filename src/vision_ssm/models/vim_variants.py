"""The table of Vim variants and their registration with timm.

Light on purpose: this is imported as soon as timm is, so the model itself is imported when one is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from vision_ssm.errors import CheckpointError, ConfigError, suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__: list[str] = []  # register_model appends the variants

# Width per size; depth 24, 16 states and everything else are the defaults of Vim (paper, section 3.4).
WIDTHS = {"tiny": 192, "small": 384, "base": 768}

# Options that timm's builder takes beside the model's own.
BUILD_OPTIONS = frozenset(
    {
        "cache_dir",
        "feature_cls",
        "features_only",
        "out_indices",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "pretrained_strict",
    }
)


def _cfg(**values: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,  # resize to 256, crop 224
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2401.09417",
        "paper_name": "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        "origin_url": "https://github.com/hustvl/Vim",
        **values,
    }


# The revision is that of the download caches in which vim_t_midclstok_76p1acc.pth is publicly recorded. None could be
# found for the other files, so they follow the repositories' main branch.
_TINY = _cfg(
    hf_hub_id="hustvl/Vim-tiny-midclstok@07c00e0e4ea2973d8e343afdd807128a57bc9fd5",
    hf_hub_filename="vim_t_midclstok_76p1acc.pth",
)
_TINY_FINE = _cfg(hf_hub_id="hustvl/Vim-tiny-midclstok", hf_hub_filename="vim_t_midclstok_ft_78p3acc.pth")
_SMALL = _cfg(hf_hub_id="hustvl/Vim-small-midclstok", hf_hub_filename="vim_s_midclstok_80p5acc.pth")
_SMALL_FINE = _cfg(hf_hub_id="hustvl/Vim-small-midclstok", hf_hub_filename="vim_s_midclstok_ft_81p6acc.pth")
_BASE = _cfg(hf_hub_id="hustvl/Vim-base-midclstok", hf_hub_filename="vim_b_midclstok_81p9acc.pth")
_NANO = _cfg(
    input_size=(3, 32, 32), num_classes=10, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), origin_url=None
)

default_cfgs = generate_default_cfgs(
    {
        "vim_nano.untrained": _NANO,
        "vim_tiny_patch16_224.hustvl_in1k": _TINY,
        "vim_tiny_patch16_stride8_224.hustvl_ft_in1k": _TINY_FINE,
        "vim_small_patch16_224.hustvl_in1k": _SMALL,
        "vim_small_patch16_stride8_224.hustvl_ft_in1k": _SMALL_FINE,
        "vim_base_patch16_224.hustvl_in1k": _BASE,
        "vim_base_patch16_stride8_224.untrained": _cfg(),
        "vim_tiny_patch16_224_pyramid.hustvl_in1k": _TINY,
        "vim_small_patch16_224_pyramid.hustvl_in1k": _SMALL,
        "vim_base_patch16_224_pyramid.hustvl_in1k": _BASE,
    }
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Published weights, bare or within a training state, to ours (timm's ``pretrained_filter_fn``); idempotent.

    Raises:
        CheckpointError: they do not fit; what timm replaces for another number of classes or channels may differ.
    """
    from vision_ssm.checkpoints import convert, select_weights

    source: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    replaceable = []
    if getattr(model, "num_classes", None) != source.get("num_classes"):
        replaceable.append("head.")
    if getattr(model, "in_chans", None) != source.get("input_size", (3,))[0]:
        replaceable.append("patch_embed.proj.weight")
    return convert(model, select_weights(state_dict), replaceable=tuple(replaceable))


def _create(variant: str, pretrained: bool, given: Mapping[str, Any], **row: Any) -> nn.Module:
    """Build a variant from its row of the table, overridden by the options given."""
    from vision_ssm.models.pyramid import FeaturePyramid, quarter_taps
    from vision_ssm.models.vim import Vim

    known = {*inspect.signature(Vim).parameters, *BUILD_OPTIONS}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(
            f"{variant} has no option {', '.join(map(repr, unknown))}.{suggestion(unknown[0], sorted(known))}"
        )
    options = {**row, **given}
    feature_cls = options.pop("feature_cls", "getter")
    steps = options.get("depth", 24) // (2 if options.get("direction") == "layerwise" else 1)
    pyramid = feature_cls in ("pyramid", FeaturePyramid)
    if pretrained:
        options["pretrained_cfg_overlay"] = _with_weights(variant, options)
    model: nn.Module = build_model_with_cfg(
        Vim,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={
            "feature_cls": FeaturePyramid if pyramid else feature_cls,
            "out_indices": (0, 1, 2, 3) if pyramid else quarter_taps(steps),
        },
        **options,
    )
    # The weights are in the model now; the record of where they came from should not hold them a second time.
    for owner in (model, getattr(model, "model", None), getattr(getattr(model, "body", None), "model", None)):
        getattr(owner, "pretrained_cfg", {}).pop("state_dict", None)
    return model


def _with_weights(variant: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Read the pretrained weights here, so that files and the hub give the same tensors and our own errors.

    Left to timm, a file would yield the averaged weights of a training state and the hub the plain ones, and a
    missing network half a minute of retries. Sources of the user's own (local-dir:, hf-hub:, url) stay timm's.
    """
    from vision_ssm.checkpoints import download, read_checkpoint

    overlay = dict(options.get("pretrained_cfg_overlay") or {})
    source = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), overlay)
    if source.source or source.state_dict or source.url:
        return overlay
    if source.file:
        path: str | Path = source.file
    elif source.hf_hub_id and source.hf_hub_filename:
        repo, _, revision = source.hf_hub_id.partition("@")
        path = download(repo, source.hf_hub_filename, revision or None, options.get("cache_dir"))
    elif source.hf_hub_id:
        return overlay
    else:
        raise CheckpointError(
            f"no weights were published for {variant}. Use pretrained=False, or give a file: "
            "pretrained_cfg_overlay=dict(file='...') in Python, --checkpoint on the command line."
        )
    return {**overlay, "state_dict": read_checkpoint(path).weights}


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
