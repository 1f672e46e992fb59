"""From a row of a variants table to a model: options checked, timm's builder, pretrained weights read here.

Light on purpose: the tables import this as soon as timm is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, resolve_pretrained_cfg

from vision_ssm.errors import CheckpointError, ConfigError, suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["build", "checkpoint_filter_fn", "imagenet_cfg", "merged_options", "small_image_cfg"]

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


def imagenet_cfg(**values: Any) -> dict[str, Any]:
    """Timm's pretrained configuration of an ImageNet-1K classifier; ``values`` override and extend it."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,  # resize to 256, crop 224
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **values,
    }


def small_image_cfg(**values: Any) -> dict[str, Any]:
    """The same for the untrained models of 32 x 32 images and ten classes."""
    half = (0.5, 0.5, 0.5)
    small = {"input_size": (3, 32, 32), "num_classes": 10, "crop_pct": 1.0, "mean": half, "std": half}
    return imagenet_cfg(**{**small, **values})


def merged_options(
    model_class: type[nn.Module], variant: str, row: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the variant's row overridden by the options given.

    Raises:
        ConfigError: neither the model nor timm's builder has an option of that name; names the nearest.
    """
    known = {*inspect.signature(model_class).parameters, *BUILD_OPTIONS}
    unknown = sorted(set(given) - known)
    if "output_stride" in unknown:
        raise ConfigError(f"{variant} has no option 'output_stride': the strides of its maps are fixed.")
    if unknown:
        raise ConfigError(
            f"{variant} has no option {', '.join(map(repr, unknown))}.{suggestion(unknown[0], sorted(known))}"
        )
    return {**row, **given}


def build(
    model_class: type[nn.Module],
    variant: str,
    pretrained: bool,
    options: Mapping[str, Any],
    *,
    out_indices: tuple[int, ...] = (0, 1, 2, 3),
) -> nn.Module:
    """Build a variant with timm's builder from :func:`merged_options`.

    Args:
        model_class: the family's module.
        variant: registered name.
        pretrained: load the published weights.
        options: of the model and of timm's builder.
        out_indices: maps of ``features_only`` unless the options name some.

    Raises:
        CheckpointError: pretrained weights cannot be had or do not fit.
        ConfigError: a pyramid is asked of a model that has one.
    """
    chosen = dict(options)
    feature_cls = chosen.pop("feature_cls", "getter")
    if feature_cls == "pyramid":
        raise ConfigError(f"the maps of {variant} are a pyramid without feature_cls='pyramid'; leave it out")
    if pretrained:
        chosen["pretrained_cfg_overlay"] = _with_weights(variant, chosen)
    model: nn.Module = build_model_with_cfg(
        model_class,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"feature_cls": feature_cls, "out_indices": out_indices},
        **chosen,
    )
    # The weights are in the model now; the record of where they came from should not hold them a second time.
    for owner in (model, getattr(model, "model", None), getattr(getattr(model, "body", None), "model", None)):
        getattr(owner, "pretrained_cfg", {}).pop("state_dict", None)
    return model


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Published weights, bare or within a training state, to ours (timm's ``pretrained_filter_fn``); idempotent.

    What a classifier's file cannot hold, the norms of the dense-task backbone's maps, stays as the model has it.

    Raises:
        CheckpointError: they do not fit; what timm replaces for another number of classes or channels may differ.
    """
    from vision_ssm.checkpoints import convert, select_weights

    source: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    norms = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("stage_norms.")}
    replaceable = [*norms]
    if getattr(model, "num_classes", None) != source.get("num_classes"):
        replaceable += [f"{source.get('classifier')}.{part}" for part in ("weight", "bias")]
    if getattr(model, "in_chans", None) != source.get("input_size", (3,))[0]:
        replaceable.append(f"{source.get('first_conv')}.weight")
    return norms | convert(model, select_weights(state_dict), replaceable=tuple(replaceable))


def _with_weights(variant: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Read the pretrained weights here, so that files, releases and the hub give the same tensors and our own errors.

    Left to timm, a file would yield the averaged weights of a training state and the hub the plain ones, a pickled
    configuration object would be refused, and a missing network would take half a minute of retries. Sources of the
    user's own (local-dir:, hf-hub:) stay timm's.
    """
    from vision_ssm.checkpoints import download, download_url, read_checkpoint

    overlay = dict(options.get("pretrained_cfg_overlay") or {})
    source = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), overlay)
    if source.source or source.state_dict:
        return overlay
    if source.file:
        path: str | Path = source.file
    elif source.hf_hub_id and source.hf_hub_filename:
        repo, _, revision = source.hf_hub_id.partition("@")
        path = download(repo, source.hf_hub_filename, revision or None, options.get("cache_dir"))
    elif isinstance(source.url, str) and source.url:
        path = download_url(source.url, options.get("cache_dir"))
    elif source.hf_hub_id or source.url:
        return overlay
    else:
        raise CheckpointError(
            f"no weights were published for {variant}. Use pretrained=False, or give a file: "
            "pretrained_cfg_overlay=dict(file='...') in Python, --checkpoint on the command line."
        )
    return {**overlay, "state_dict": read_checkpoint(path).weights}
