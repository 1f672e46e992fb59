"""Published segmentors: every number of each, and what was published about it; and building any segmentor by name.

Light on purpose: the table is read without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vision_ssm.errors import ConfigError
from vision_ssm.models.variant import Weights, WithHeads
from vision_ssm.models.vmamba_variants import ORIGIN as VMAMBA
from vision_ssm.models.vmamba_variants import README

if TYPE_CHECKING:
    from torch import nn

    from vision_ssm.models.segmentor import Segmentor

__all__ = ["SEGMENTORS", "PublishedSegmentor", "build_segmentor", "segmentor"]

RELEASE = "https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg"


@dataclass(frozen=True)
class PublishedSegmentor(WithHeads):
    """One published segmentor.

    Scores are those that the authors report for ADE20K validation, mean IoU in percent, of the whole image at one scale
    and of six scales with flips; they have not been measured with this library.
    """

    task = "segmentation"  # and the heads are options of `vision_ssm.models.segmentor.Segmentor`

    miou: float
    miou_many_scales: float
    weights: Weights

    @property
    def published(self) -> str:
        """The scores in words."""
        return f"{self.miou:.1f} % mIoU"

    def options_of_heads(self) -> tuple[str, ...]:
        """Names of the options that are not the backbone's."""
        return OF_HEADS

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return {
            "name": self.name,
            "task": self.task,
            "backbone": self.backbone,
            "params": self.params,
            "miou": self.miou,
            "miou_many_scales": self.miou_many_scales,
            "source": self.source,
            "weights": self.weights.address,
        }


OF_HEADS = ("num_classes", "channels", "auxiliary_channels", "drop_rate")
ADE20K = {"num_classes": 150, "channels": 512, "auxiliary_channels": 256}

# fmt: off
SEGMENTORS = {
    row.name: row for row in (
        PublishedSegmentor(
            "vmamba_tiny_s1l8_upernet_ade20k",
            "vmamba_tiny_s1l8", {"stage_norms": True, "drop_path_rate": 0.2}, ADE20K,
            params=61_902_572, miou=47.9, miou_many_scales=48.8, source=README, origin=VMAMBA,
            weights=Weights("upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000.pth", RELEASE),
        ),
        PublishedSegmentor(
            "vmamba_tiny_s2l5_upernet_ade20k",
            "vmamba_tiny_s2l5", {"stage_norms": True, "drop_path_rate": 0.2}, ADE20K,
            params=62_359_340, miou=48.3, miou_many_scales=48.6, source=README, origin=VMAMBA,
            weights=Weights("upernet_vssm_4xb4-160k_ade20k-512x512_tiny_iter_160000.pth", RELEASE),
        ),
        PublishedSegmentor(
            "vmamba_small_s2l15_upernet_ade20k",
            "vmamba_small_s2l15", {"stage_norms": True, "drop_path_rate": 0.3}, ADE20K,
            params=81_801_260, miou=50.6, miou_many_scales=51.2, source=README, origin=VMAMBA,
            weights=Weights("upernet_vssm_4xb4-160k_ade20k-512x512_small_iter_144000.pth", RELEASE),
        ),
        PublishedSegmentor(
            "vmamba_base_s2l15_upernet_ade20k",
            "vmamba_base_s2l15", {"stage_norms": True, "drop_path_rate": 0.6}, ADE20K,
            params=122_069_292, miou=51.0, miou_many_scales=51.6, source=README, origin=VMAMBA,
            weights=Weights("upernet_vssm_4xb4-160k_ade20k-512x512_base_iter_160000.pth", RELEASE),
        ),
    )
}
# fmt: on


def build_segmentor(
    backbone: str, heads: Mapping[str, Any], *, pretrained: bool = False, **backbone_options: Any
) -> Segmentor:
    """Build a segmentor around any backbone that timm has.

    Args:
        backbone: registered name; a model whose maps all have one stride becomes a pyramid
            (`vision_ssm.models.pyramid`).
        heads: options of `vision_ssm.models.segmentor.Segmentor`, and ``tap`` and ``last_norm`` of such a pyramid.
        pretrained: load the backbone's published weights.
        backbone_options: of the backbone.

    Raises:
        ConfigError: unknown name or option, or a backbone without maps at strides 4, 8, 16 and 32.
        CheckpointError: pretrained weights cannot be had or do not fit.
    """
    import torch

    from vision_ssm.models.pyramid import REDUCTIONS, FeaturePyramid
    from vision_ssm.models.registry import create_model
    from vision_ssm.models.segmentor import Segmentor

    heads = dict(heads)
    pyramid = {option: heads.pop(option) for option in ("tap", "last_norm") if option in heads}
    options = {"features_only": True, **backbone_options}
    with torch.device("meta"):
        infos: Any = create_model(backbone, **options).feature_info
    reductions = infos.reduction()
    if len(set(reductions)) == 1:
        options["feature_cls"] = partial(FeaturePyramid, **pyramid)
        options["out_indices"] = (0, 1, 2, 3)
    elif pyramid.get("tap", "stream") != "stream" or pyramid.get("last_norm"):
        raise ConfigError(f"the maps of {backbone} are those of its stages: tap and last_norm have no meaning for it.")
    elif set(REDUCTIONS) <= set(reductions):
        options["out_indices"] = tuple(infos.out_indices[reductions.index(stride)] for stride in REDUCTIONS)
    return Segmentor(create_model(backbone, pretrained=pretrained, **options), **heads)


def segmentor(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a published segmentor.

    Args:
        name: of the table.
        pretrained: load the published weights of all of it; with another ``num_classes`` the classifiers of both heads
            start anew.
        options: of the heads (``num_classes``, ``channels``, ``auxiliary_channels``, ``drop_rate``); every other one is
            the backbone's.

    Raises:
        ConfigError: an option is unknown or out of range.
        CheckpointError: pretrained weights cannot be had or do not fit.
    """
    row = SEGMENTORS[name]
    heads = {option: options.pop(option, row.heads.get(option)) for option in OF_HEADS}
    chosen = {option: value for option, value in heads.items() if value is not None}
    model = build_segmentor(row.backbone, chosen, **{**row.backbone_options, **options})
    if pretrained:
        from vision_ssm.models.building import load_whole

        same = model.num_classes == row.heads["num_classes"]
        load_whole(model, name, row.weights, anew=() if same else (".conv_seg.",))
    return model
