"""The second stage's parts: features of regions, and the heads that classify, move and mask them.

    features = RoIAlign(P_l, box)                                 side x side, l by the size of the box
    h = ReLU(fc(... ReLU(conv(features)) ...))
    classes = W_c h,  deltas = W_d h                              background last; four deltas, or four per class
    mask = W_m ReLU(up(ReLU(conv(... features ...))))             up: 2 x 2 transposed; a map per class

Source: Fast R-CNN, arXiv:1504.08083; Mask R-CNN, arXiv:1703.06870.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from vision_ssm.layers.detection.conventions import Convention
from vision_ssm.layers.detection.necks import LEVELS, STRIDES, convolution

__all__ = ["BoxHead", "MaskHead", "levels_of", "region_features"]

BOX_SIDE, MASK_SIDE = 7, 14


def levels_of(boxes: Tensor, convention: Convention) -> Tensor:
    """Return which map each box [N, 4] takes its features from: floor(l + log2(√(w h) / side + epsilon)), bounded.

    Source: FPN, arXiv:1612.03144, eq. 1.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level: Tensor = convention.level_of_side + torch.log2(side / convention.level_side + convention.level_epsilon)
    return level.floor().clamp(0, LEVELS - 1).long()


def region_features(maps: Sequence[Tensor], boxes: Sequence[Tensor], side: int, convention: Convention) -> Tensor:
    """Return features [N, C, side, side] of regions, one image after the other.

    Args:
        maps: [B, C, h, w] at strides 4, 8, 16 and 32, and perhaps more.
        boxes: [n, 4] of each image.
        side: of the result.
        convention: whose rule of levels.
    """
    images = torch.cat([torch.full_like(each[:, :1], image) for image, each in enumerate(boxes)])
    regions = torch.cat([images, torch.cat(list(boxes))], dim=1)
    if regions.is_meta:  # without content all that counts is how many there are
        as_many: Tensor = roi_align(maps[0], regions, side, 1 / STRIDES[0], 0, aligned=True)
        return as_many
    levels = levels_of(regions[:, 1:], convention)
    rows = [torch.where(levels == level)[0] for level in range(LEVELS)]
    wide = torch.promote_types(maps[0].dtype, torch.float32)  # in half precision a box would move by pixels
    found = [
        roi_align(x.to(wide), regions[chosen].to(wide), side, 1 / stride, 0, aligned=True).to(x.dtype)
        for x, stride, chosen in zip(maps[:LEVELS], STRIDES[:LEVELS], rows, strict=True)
    ]
    return torch.cat(found)[torch.cat(rows).argsort()]


class BoxHead(nn.Module):
    """Classes and deltas of regions.

    Args:
        channels: of the features and the convolutions.
        num_classes: without the background.
        convs: how many convolutions.
        fcs: how many linear layers, at least one.
        fc_channels: width of these.
        norm: a LayerNorm after every convolution.
        class_agnostic: four deltas per region instead of four per class.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        convs: int,
        fcs: int,
        fc_channels: int,
        norm: bool,
        class_agnostic: bool,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convolution(channels, channels, 3, norm) for _ in range(convs))
        widths = [channels * BOX_SIDE**2] + [fc_channels] * fcs
        self.fcs = nn.ModuleList(nn.Linear(given, made) for given, made in pairwise(widths))
        self.classes = nn.Linear(fc_channels, num_classes + 1)
        self.boxes = nn.Linear(fc_channels, 4 if class_agnostic else 4 * num_classes)
        _init_convolutions(self.convs)
        for module in self.fcs:
            nn.init.xavier_uniform_(module.weight)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for predictor, std in ((self.classes, 0.01), (self.boxes, 0.001)):
            nn.init.normal_(predictor.weight, std=std)
            nn.init.zeros_(predictor.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, classes + 1] and deltas [N, 1 or classes, 4] of features [N, C, 7, 7]."""
        x = features
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.classes(x).float(), self.boxes(x).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Masks of regions.

    Args:
        in_channels: of the features.
        num_classes: without the background.
        convs: how many convolutions.
        channels: width of these and of the upsampling.
        norm: a LayerNorm after every convolution.
    """

    def __init__(self, in_channels: int, num_classes: int, *, convs: int, channels: int, norm: bool) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.convs = nn.ModuleList(convolution(given, made, 3, norm) for given, made in pairwise(widths))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, 2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        _init_convolutions(self.convs)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.upsample.bias)  # type: ignore[arg-type]  # it has one
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [N, classes, 28, 28] of features [N, C, 14, 14]."""
        x = features
        for conv in self.convs:
            x = F.relu(conv(x))
        logits: Tensor = self.logits(F.relu(self.upsample(x)))
        return logits.float()


def _init_convolutions(convs: nn.ModuleList) -> None:
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
