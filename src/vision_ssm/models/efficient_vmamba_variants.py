"""The table of EfficientVMamba variants and their registration with timm.

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


def _cfg(size: str = "", **values: Any) -> dict[str, Any]:
    # No revision of these repositories could be found on record, so they follow their main branch.
    hub = {
        "hf_hub_id": f"TerryPei/EfficientVMamba-{size.title()}",
        "hf_hub_filename": f"efficient_vmamba_{size}.ckpt",
        "origin_url": "https://github.com/TerryPei/EfficientVMamba",
    }
    return {
        **(hub if size else {}),
        "first_conv": "patch_embed.conv1",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2403.09977",
        "paper_name": "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
        **values,
    }


default_cfgs = generate_default_cfgs(
    {
        "efficientvmamba_nano.untrained": small_image_cfg(**_cfg()),
        "efficientvmamba_tiny.terrypei_in1k": imagenet_cfg(**_cfg("tiny")),
        "efficientvmamba_small.terrypei_in1k": imagenet_cfg(**_cfg("small")),
        "efficientvmamba_base.terrypei_in1k": imagenet_cfg(**_cfg("base")),
    }
)


def _create(variant: str, pretrained: bool, given: Mapping[str, Any], **row: Any) -> nn.Module:
    """Build a variant from its row of the table, overridden by the options given."""
    from vision_ssm.models.efficient_vmamba import EfficientVMamba

    return build(EfficientVMamba, variant, pretrained, merged_options(EfficientVMamba, variant, row, given))


@register_model
def efficientvmamba_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientVMamba for small images: 32 pixels, maps of 16, 8, 4 and 2, 1.35 M parameters with 10 classes."""
    row = {"patch_size": 2, "embed_dim": 24, "depths": (2, 2, 2, 2)}
    return _create("efficientvmamba_nano", pretrained, kwargs, **row)


@register_model
def efficientvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientVMamba-T: 6.5 M parameters, 76.5 % top-1."""
    return _create("efficientvmamba_tiny", pretrained, kwargs, embed_dim=48)


@register_model
def efficientvmamba_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientVMamba-S as trained and released: width 64, 11.3 M parameters, 78.7 % top-1.

    The paper's table 1 and the repository's configuration say 96, which makes 24.8 M: ``embed_dim=96`` builds that.
    """
    return _create("efficientvmamba_small", pretrained, kwargs, embed_dim=64)


@register_model
def efficientvmamba_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientVMamba-B: 33.7 M parameters, 81.8 % top-1."""
    return _create("efficientvmamba_base", pretrained, kwargs, embed_dim=96, depths=(2, 2, 9, 2))
