"""Denoisers, models that tell the noise in an image: every number of each, and building any of them by name.

They are called with images or latents [B, C, H, W], timesteps [B] and labels [B]. timm has no such models and does not
know these. Light on purpose: the table is read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vision_ssm.errors import CheckpointError
from vision_ssm.families import DENOISING, named
from vision_ssm.models.variant import Denoiser

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DENOISERS", "class_of", "denoiser"]

_FAMILIES = {row.name: family for family in DENOISING for row in named(family.variants).VARIANTS}

DENOISERS: dict[str, Denoiser] = {row.name: row for family in DENOISING for row in named(family.variants).VARIANTS}
"""Every denoiser of this library by its name."""


def class_of(name: str) -> type[nn.Module]:
    """Return the class of a denoiser of the table."""
    found: type[nn.Module] = named(_FAMILIES[name].model)
    return found


def denoiser(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a denoiser.

    Args:
        name: of the table.
        pretrained: refused, for nobody released weights.
        options: of the model's class, over those of its row.

    Returns:
        The model; its ``pretrained_cfg`` says what timm's models say there, as far as it applies.

    Raises:
        CheckpointError: pretrained weights are asked for.
        ConfigError: an option is unknown or out of range.
    """
    from vision_ssm.models.building import check_options

    if pretrained:
        raise CheckpointError(
            f"no weights were published for {name}. Use pretrained=False, or load a file of your own with "
            "vision_ssm.checkpoints.load_published."
        )
    row = DENOISERS[name]
    check_options(class_of(name), name, options)
    model: Any = class_of(name)(**{**row.options, **options})
    model.pretrained_cfg = {
        "architecture": name,
        "input_size": (model.in_chans, *model.patch_embed.img_size),
        "num_classes": model.num_classes,
        "classifier": "y_embed.table",  # what starts anew for other classes
    }
    built: nn.Module = model
    return built
