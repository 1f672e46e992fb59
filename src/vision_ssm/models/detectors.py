"""Published detectors: every number of each, and what was published about it; and building any detector by name.

Light on purpose: the table is read without torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.models.efficient_vmamba_variants import ORIGIN as EFFICIENT_VMAMBA
from vision_ssm.models.variant import Weights, WithHeads
from vision_ssm.models.vim_variants import ORIGIN as VIM
from vision_ssm.models.vmamba_variants import ORIGIN as VMAMBA
from vision_ssm.models.vmamba_variants import README

if TYPE_CHECKING:
    from torch import nn

    from vision_ssm.models.detector import Detector

__all__ = ["DETECTORS", "PublishedDetector", "build_detector", "detector"]

RELEASE = "https://github.com/MzeroMiko/VMamba/releases/download/%23v2det"


@dataclass(frozen=True)
class PublishedDetector(WithHeads):
    """One published detector.

    Scores are those that the authors report for COCO val2017, average precision of boxes and of masks in percent; they
    have not been measured with this library.
    """

    task = "detection"  # and the heads are options of `vision_ssm.models.detector.Detector`

    ap_box: float | None
    ap_mask: float | None
    weights: Weights | None

    @property
    def published(self) -> str:
        """The scores in words."""
        return "-" if self.ap_box is None else f"{self.ap_box:.1f} box AP, {self.ap_mask:.1f} mask AP"

    def options_of_heads(self) -> tuple[str, ...]:
        """Names of the options that are not the backbone's."""
        from vision_ssm.models.detector import Detector

        return tuple(set(inspect.signature(Detector).parameters) - {"backbone"})

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return {
            "name": self.name,
            "task": self.task,
            "backbone": self.backbone,
            "params": self.params,
            "ap_box": self.ap_box,
            "ap_mask": self.ap_mask,
            "source": self.source,
            "weights": None if self.weights is None else self.weights.address,
        }


MASK_RCNN = {"num_classes": 80, "kind": "mask", "convention": "mmdet"}
CASCADE = {
    "num_classes": 80, "kind": "cascade_mask", "convention": "detectron2", "norm": True, "rpn_convs": 2, "box_convs": 4,
    "box_fcs": 1, "square": 1024,
}  # fmt: skip


# In the names of parameters that depend on the number of classes.
OF_CLASSES = (".classes.", ".boxes.", *(f".mask_heads.{stage}.logits." for stage in range(3)))


def _vmamba(
    size: str, schedule: str, file: str, drop_path: float, params: int, box: float, mask: float
) -> PublishedDetector:
    return PublishedDetector(
        f"vmamba_{size}_mask_rcnn_{schedule}coco",
        f"vmamba_{size}", {"stage_norms": True, "drop_path_rate": drop_path}, MASK_RCNN,
        params=params, ap_box=box, ap_mask=mask, source=README, origin=VMAMBA,
        weights=Weights(f"mask_rcnn_vssm_fpn_coco_{file}.pth", RELEASE),
    )  # fmt: skip


def _vim(
    size: str, heads: Mapping[str, Any], params: int, box: float | None, mask: float | None, source: str
) -> PublishedDetector:
    """The authors released no weights of theirs."""
    return PublishedDetector(
        f"vim_{size}_cascade_mask_rcnn",
        f"vim_{size.removesuffix('_lite')}_patch16_224",
        {"img_size": 1024, "class_token": "none", "rotary": True, "drop_path_rate": 0.1}, {**CASCADE, **heads},
        params=params, ap_box=box, ap_mask=mask, source=source, origin=VIM, weights=None,
    )  # fmt: skip


# fmt: off
DETECTORS: dict[str, PublishedDetector] = {
    row.name: row for row in (
        _vmamba("tiny_s1l8", "", "tiny_s_epoch_12", 0.2, 49_755_312, 47.3, 42.7),
        _vmamba("tiny_s1l8", "3x_", "tiny_ms_3x_s_epoch_31", 0.2, 49_755_312, 48.8, 43.7),
        _vmamba("tiny_s2l5", "", "tiny_epoch_12", 0.2, 50_212_080, 47.4, 42.7),
        _vmamba("tiny_s2l5", "3x_", "tiny_ms_3x_epoch_36", 0.2, 50_212_080, 48.9, 43.7),
        _vmamba("small_s2l15", "", "small_epoch_11", 0.2, 69_654_000, 48.7, 43.7),
        _vmamba("small_s2l15", "3x_", "small_ms_3x_epoch_32", 0.2, 69_654_000, 49.9, 44.2),
        _vmamba("base_s2l15", "", "base_epoch_11", 0.6, 107_931_376, 49.2, 44.1),
        _vim("tiny", {}, 60_080_078, 45.7, 39.2, "arXiv:2401.09417v3, table 3"),
        _vim("small", {}, 79_918_142, None, None, "-"),
        _vim(
            "tiny_lite", {"channels": 192, "fc_channels": 768}, 37_320_014, None, None, "-",
        ),
        PublishedDetector(
            # The one of the repository's three configurations whose parameters are those of the paper's table; the
            # other two differ from the released backbones in depth or width.
            "efficientvmamba_base_mask_rcnn_coco",
            "efficientvmamba_base", {"stage_norms": True, "drop_path_rate": 0.2}, MASK_RCNN,
            params=53_223_384, ap_box=43.7, ap_mask=40.2, source="arXiv:2403.09977, Mask R-CNN 1x",
            origin=EFFICIENT_VMAMBA, weights=None,
        ),
    )
}
# fmt: on


def build_detector(
    backbone: str | nn.Module,
    num_classes: int,
    *,
    kind: str = "mask",
    convention: str | None = None,
    pretrained: bool = False,
    **options: Any,
) -> Detector:
    """Build a detector around any backbone that timm has.

    Args:
        backbone: registered name, or a module of timm's ``features_only`` form. A model whose maps all have one stride
            gives its last map, of which the simple feature pyramid is made; any other one its maps at strides 4, 8, 16
            and 32, which FPN joins.
        num_classes: without the background.
        kind: 'faster', 'mask', 'cascade' or 'cascade_mask'.
        convention: see `vision_ssm.models.detector.Detector`.
        pretrained: load the backbone's published weights.
        options: those of `vision_ssm.models.detector.Detector` (``channels``, ``fc_channels``, ``norm``, ...); every
            other one is the backbone's (``img_size``, ``in_chans``, ...).

    Raises:
        ConfigError: unknown name or option, or a backbone with other maps.
        CheckpointError: pretrained weights cannot be had or do not fit.
    """
    import torch

    from vision_ssm.models.detector import Detector
    from vision_ssm.models.pyramid import REDUCTIONS
    from vision_ssm.models.registry import create_model

    known = set(inspect.signature(Detector).parameters) - {"backbone"}
    heads = {name: options.pop(name) for name in sorted(known & options.keys())}
    heads |= {"num_classes": num_classes, "kind": kind, "convention": convention}
    if not isinstance(backbone, str):
        if options or pretrained:
            raise ConfigError(f"a backbone that is built already takes no options, got {', '.join(options)}")
        return Detector(backbone, **heads)
    features = {"features_only": True, **options}
    with torch.device("meta"):
        infos: Any = create_model(backbone, **features).feature_info
    reductions = infos.reduction()
    if len(set(reductions)) == 1:
        features["out_indices"] = (infos.out_indices[-1],)
    elif set(REDUCTIONS) <= set(reductions):
        features["out_indices"] = tuple(infos.out_indices[reductions.index(stride)] for stride in REDUCTIONS)
    return Detector(create_model(backbone, pretrained=pretrained, **features), **heads)


def detector(name: str, *, pretrained: bool = False, **options: Any) -> Detector:
    """Build a published detector.

    Args:
        name: of the table.
        pretrained: load the published weights of all of it; with another ``num_classes`` what depends on it starts
            anew.
        options: of `vision_ssm.models.detector.Detector`; every other one is the backbone's.

    Raises:
        ConfigError: an option is unknown or out of range.
        CheckpointError: pretrained weights cannot be had or do not fit.
    """
    row = DETECTORS[name]
    if pretrained and row.weights is None:
        raise CheckpointError(
            f"no weights were published for {name}. Use pretrained=False, or load a file of your own with "
            "vision_ssm.checkpoints.load_published."
        )
    model = build_detector(row.backbone, **{**row.heads, **row.backbone_options, **options})
    if pretrained and row.weights is not None:
        from vision_ssm.models.building import load_whole

        same = model.num_classes == row.heads["num_classes"]
        load_whole(model, name, row.weights, anew=() if same else OF_CLASSES)
    return model
