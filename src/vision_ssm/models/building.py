"""From a row of a variants table to a model: options checked, timm's builder, pretrained weights read here.

Light on purpose: this is imported as soon as timm is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.models import build_model_with_cfg, resolve_pretrained_cfg

from vision_ssm import moved
from vision_ssm.errors import CheckpointError, ConfigError, NotFetchedError, suggestion
from vision_ssm.models.variant import Variant, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["build", "check_options", "checkpoint_filter_fn", "load_whole"]

moved.answer(__name__)

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


def build(
    model_class: type[nn.Module],
    row: Variant,
    pretrained: bool,
    given: Mapping[str, Any],
    features: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
) -> nn.Module:
    """Build a variant with timm's builder from its row of the table, overridden by the options given.

    Args:
        model_class: the family's module.
        row: of the table.
        pretrained: load the published weights.
        given: options of the model and of timm's builder.
        features: from the options to timm's ``feature_cfg``; None for a family whose stages are a pyramid.

    Raises:
        CheckpointError: pretrained weights cannot be had or do not fit.
        ConfigError: an unknown option, with the nearest name, or a pyramid is asked of a model that has one.
    """
    check_options(model_class, row.name, given, BUILD_OPTIONS)
    chosen = {**row.options, **({"feature_cls": row.feature_cls} if row.feature_cls else {}), **given}
    feature_cfg = (features or _stages)(chosen)
    if chosen.pop("feature_cls", None) == "pyramid" and features is None:
        raise ConfigError(f"the maps of {row.name} are a pyramid without feature_cls='pyramid'; leave it out")
    if pretrained:
        try:
            chosen["pretrained_cfg_overlay"] = _with_weights(row.name, chosen)
        except NotFetchedError as error:
            raise NotFetchedError(error.reason, file=error.file, folder=error.folder, model=row.name) from None
    model: nn.Module = build_model_with_cfg(
        model_class, row.name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=feature_cfg, **chosen
    )
    # The weights are in the model now; the record of where they came from should not hold them a second time.
    for owner in (model, getattr(model, "model", None), getattr(getattr(model, "body", None), "model", None)):
        getattr(owner, "pretrained_cfg", {}).pop("state_dict", None)
    return model


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Published weights, bare or within a training state, to ours (timm's ``pretrained_filter_fn``); idempotent.

    What a classifier's file cannot hold, which the model's class names, stays as the model has it.

    Raises:
        CheckpointError: they do not fit; what timm replaces for another number of classes or channels may differ.
    """
    from vision_ssm.checkpoints import convert, select_weights

    source: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    missing: tuple[str, ...] = getattr(model, "not_in_classifiers", ())
    kept = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(missing)}
    replaceable = [*kept]
    if getattr(model, "num_classes", None) != source.get("num_classes"):
        replaceable += [f"{source.get('classifier')}.{part}" for part in ("weight", "bias")]
    if getattr(model, "in_chans", None) != source.get("input_size", (3,))[0]:
        replaceable.append(f"{source.get('first_conv')}.weight")
    return kept | convert(model, select_weights(state_dict), replaceable=tuple(replaceable))


def load_whole(model: nn.Module, name: str, weights: Weights, anew: tuple[str, ...] = ()) -> None:
    """Load the published weights of a model with its heads, from the cache or from where the authors keep them.

    Args:
        model: built from its row of a table.
        name: of the row.
        weights: of the row.
        anew: parameters in whose names one of these occurs stay as they are: those of another number of classes.

    Raises:
        CheckpointError: they cannot be had or do not fit.
    """
    from vision_ssm.checkpoints import convert, download_url, read_checkpoint

    try:
        path = download_url(weights.address)
    except NotFetchedError as error:
        raise NotFetchedError(error.reason, file=error.file, folder=error.folder, model=name) from None
    own = model.state_dict()
    kept = {key: tensor for key, tensor in own.items() if any(part in key for part in anew)}
    found = convert(model, read_checkpoint(path).weights, replaceable=tuple(kept))
    model.load_state_dict({**found, **kept}, strict=True)


def check_options(
    model_class: type[nn.Module], variant: str, given: Mapping[str, Any], others: Iterable[str] = ()
) -> None:
    """Raise ConfigError, with the nearest name, for options that are neither the model's nor among the others."""
    known = {*inspect.signature(model_class).parameters, *others}
    unknown = sorted(set(given) - known)
    if "output_stride" in unknown:
        raise ConfigError(f"{variant} has no option 'output_stride': the strides of its maps are fixed.")
    if unknown:
        raise ConfigError(
            f"{variant} has no option {', '.join(map(repr, unknown))}.{suggestion(unknown[0], sorted(known))}"
        )


def _stages(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give timm's ``feature_cfg`` of a four-stage family: all four maps."""
    return {"feature_cls": options.get("feature_cls", "getter"), "out_indices": (0, 1, 2, 3)}


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
