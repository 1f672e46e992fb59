"""The backbones with which the segmentation models of other libraries are tried."""

from __future__ import annotations

import timm
import torch

from vision_ssm.families import FAMILIES

STRIDES = (4, 8, 16, 32)


def channels(name: str) -> list[int]:
    """Channels of the model's maps, as timm tells them."""
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
    assert model.feature_info.reduction() == list(STRIDES)
    return model.feature_info.channels()


# Name, and the channels of its maps at strides 4, 8, 16 and 32.
DENSE = {family.dense: channels(family.dense) for family in FAMILIES if family.dense}


def map_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of the four maps of an image: what is ragged is padded, so they are rounded up."""
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
