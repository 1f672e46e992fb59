"""Building any model by name, with errors that name the nearest existing one."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from vision_ssm import moved
from vision_ssm.errors import ConfigError, suggestion
from vision_ssm.models.denoisers import DENOISERS, denoiser
from vision_ssm.models.detectors import DETECTORS, detector
from vision_ssm.models.listing import WHOLE, list_models, list_whole_models
from vision_ssm.models.segmentors import SEGMENTORS, segmentor
from vision_ssm.models.variant import all_variants, full_name, list_aliases

__all__ = ["create_model", "is_ours", "list_models", "list_whole_models", "require_model", "takes_size"]

moved.answer(__name__)


def is_ours(name: str) -> bool:
    """Tell whether a denoiser, or a model of timm, perhaps named with its tag, is this library's."""
    return name in DENOISERS or full_name(name).partition(".")[0] in all_variants()


def require_model(name: str) -> None:
    """Raise ConfigError, with the nearest name, unless a model of that name is registered with timm or here."""
    if name not in WHOLE and name not in DENOISERS and not timm.is_model(full_name(name)):
        ours = [*list_models(), *list_whole_models(), *list_aliases()]
        near = suggestion(name, ours) or suggestion(name, timm.list_models())
        raise ConfigError(f"there is no model {name!r}.{near} `vision-ssm models` lists this library's models.")


def takes_size(name: str) -> bool:
    """Tell whether a model has the option ``img_size``; convolutional ones of timm do not, and take any size.

    Raises:
        ConfigError: there is no such model.
    """
    require_model(name)
    if is_ours(name):
        return True
    own = timm.get_pretrained_cfg_value(name, "input_size")
    try:
        with torch.device("meta"):  # no memory, no numbers
            timm.create_model(name, img_size=own[-1] if own else 224)
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
        return False
    return True


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model: one of this library's, a published segmentor or detector, a denoiser, or any that timm has.

    Args:
        name: for example 'vim_tiny_patch16_224' or, for short, 'vim_tiny'; a pretrained tag may follow a dot.
        pretrained: load the published weights, from the hub or the cache.
        num_classes: None for the model's own number; 0 for no classifier.
        img_size: side or (height, width); None for the model's own. Only for models that are bound to a size.
        in_chans: image channels; None for the model's own, which is 3 but for denoisers of latents.
        options: further keyword arguments of the model, see for example vision_ssm.models.vim.Vim, and timm's
            (features_only, out_indices, feature_cls, pretrained_cfg_overlay).

    Raises:
        ConfigError: unknown model or option, with the nearest name, or a value out of range.
        CheckpointError: pretrained weights cannot be had or do not fit.
    """
    require_model(name)
    given = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, **options}
    chosen = {option: value for option, value in given.items() if value is not None}
    try:
        if name in SEGMENTORS:
            return segmentor(name, pretrained=pretrained, **chosen)
        if name in DETECTORS:
            return detector(name, pretrained=pretrained, **chosen)
        if name in DENOISERS:
            return denoiser(name, pretrained=pretrained, **chosen)
        model: nn.Module = timm.create_model(full_name(name), pretrained=pretrained, **chosen)
    except TypeError as error:  # how timm's own models answer an unknown option
        raise ConfigError(f"{name}: {error}") from error
    return model
