"""Published detectors: every number of each, and what was published about it; and building any detector by name.

Light on purpose: the table is read without torch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from vision_ssm.models.detector import Detector

__all__ = ["build_detector"]


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

    from vision_ssm.errors import ConfigError
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
