"""The table of VMamba variants and their registration with timm.

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

RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download"

# The first release: gated, 16 states, no MLP, patch merging.
FIRST: dict[str, Any] = {
    "d_state": 16,
    "ssm_ratio": 2.0,
    "mlp_ratio": 0.0,
    "gate": True,
    "conv_bias": True,
    "stem": "v1",
    "downsample": "v1",
}


def _cfg(file: str = "", tag: str = "v2cls", **values: Any) -> dict[str, Any]:
    return {
        "url": f"{RELEASES}/%23{tag}/{file}" if file else "",
        "first_conv": "patch_embed.conv1",
        "classifier": "head.fc",
        "license": "mit",
        "paper_ids": "arXiv:2401.10166",
        "paper_name": "VMamba: Visual State Space Model",
        "origin_url": "https://github.com/MzeroMiko/VMamba",
        **values,
    }


default_cfgs = generate_default_cfgs(
    {
        "vmamba_nano.untrained": small_image_cfg(**_cfg(origin_url=None)),
        "vmamba_tiny_s1l8.mzeromiko_in1k": imagenet_cfg(**_cfg("vssm1_tiny_0230s_ckpt_epoch_264.pth")),
        "vmamba_tiny_s2l5.mzeromiko_in1k": imagenet_cfg(**_cfg("vssm_tiny_0230_ckpt_epoch_262.pth")),
        "vmamba_small_s2l15.mzeromiko_in1k": imagenet_cfg(**_cfg("vssm_small_0229_ckpt_epoch_222.pth")),
        "vmamba_small_s1l20.mzeromiko_in1k": imagenet_cfg(**_cfg("vssm1_small_0229s_ckpt_epoch_240.pth")),
        "vmamba_base_s2l15.mzeromiko_in1k": imagenet_cfg(**_cfg("vssm_base_0229_ckpt_epoch_237.pth")),
        "vmamba_base_s1l20.mzeromiko_in1k": imagenet_cfg(**_cfg("vssm1_base_0229s_ckpt_epoch_225.pth")),
        "vmamba_tiny_v0.mzeromiko_in1k": imagenet_cfg(**_cfg("vssmtiny_dp01_ckpt_epoch_292.pth", "v0cls")),
        "vmamba_small_v0.mzeromiko_in1k": imagenet_cfg(**_cfg("vssmsmall_dp03_ckpt_epoch_238.pth", "v0cls")),
        "vmamba_base_v0.mzeromiko_in1k": imagenet_cfg(**_cfg("vssmbase_dp06_ckpt_epoch_241.pth", "v0cls")),
    }
)


def _create(variant: str, pretrained: bool, given: Mapping[str, Any], **row: Any) -> nn.Module:
    """Build a variant from its row of the table, overridden by the options given."""
    from vision_ssm.models.vmamba import VMamba

    return build(VMamba, variant, pretrained, merged_options(VMamba, variant, row, given))


# sXlY in a name: the scan is X times as wide as the tokens, and the third stage has Y blocks.


@register_model
def vmamba_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba for small images: 32 pixels, maps of 16, 8, 4 and 2, 1.35 M parameters with 10 classes."""
    row = {"patch_size": 2, "embed_dim": 32, "depths": (2, 2, 2, 1), "mlp_ratio": 3.0}
    return _create("vmamba_nano", pretrained, kwargs, **row)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-T as the paper reports it: 30.2 M parameters, 82.6 % top-1."""
    return _create("vmamba_tiny_s1l8", pretrained, kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-T with the wider scan: 30.7 M parameters, 82.5 % top-1."""
    return _create("vmamba_tiny_s2l5", pretrained, kwargs, ssm_ratio=2.0, depths=(2, 2, 5, 2))


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-S as the paper reports it: 50.1 M parameters, 83.6 % top-1."""
    return _create("vmamba_small_s2l15", pretrained, kwargs, ssm_ratio=2.0, depths=(2, 2, 15, 2))


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-S with the narrower scan: 49.0 M parameters, 83.3 % top-1."""
    return _create("vmamba_small_s1l20", pretrained, kwargs, depths=(2, 2, 20, 2))


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-B as the paper reports it: 88.6 M parameters, 83.9 % top-1."""
    return _create("vmamba_base_s2l15", pretrained, kwargs, embed_dim=128, ssm_ratio=2.0, depths=(2, 2, 15, 2))


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-B with the narrower scan: 86.6 M parameters, 83.8 % top-1."""
    return _create("vmamba_base_s1l20", pretrained, kwargs, embed_dim=128, depths=(2, 2, 20, 2))


@register_model
def vmamba_tiny_v0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-T of the first release: 22.9 M parameters, 82.2 % top-1."""
    return _create("vmamba_tiny_v0", pretrained, kwargs, **FIRST, depths=(2, 2, 9, 2))


@register_model
def vmamba_small_v0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-S of the first release: 44.4 M parameters, 83.5 % top-1."""
    return _create("vmamba_small_v0", pretrained, kwargs, **FIRST, depths=(2, 2, 27, 2))


@register_model
def vmamba_base_v0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-B of the first release: 76.3 M parameters, 83.7 % top-1."""
    return _create("vmamba_base_v0", pretrained, kwargs, **FIRST, embed_dim=128, depths=(2, 2, 27, 2))
