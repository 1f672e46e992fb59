"""UPerNet's decode head, and the fully convolutional head beside it, on maps X_1 ... X_4 of strides 4, 8, 16 and 32.

    Y    = B([X_4, up(C_k(pool_k X_4)) for k in 1, 2, 3, 6])     pyramid pooling; B 3 x 3, C_k 1 x 1
    L_4  = Y,   L_i = A_i(X_i) + up(L_{i+1})                      from above to below; A_i 1 x 1
    P_4  = L_4, P_i = F_i(L_i)                                    F_i 3 x 3
    S    = W drop(G([P_1, up(P_2), up(P_3), up(P_4)]))            logits at stride 4; G 3 x 3, W 1 x 1

A, B, C, F and G are convolutions with batch norm and ReLU; up is bilinear resizing to the size of what it is joined
with, corners not aligned.

Source: UPerNet, arXiv:1807.10221, in the form of the published VMamba and Vim segmentors, whose parameter names these
are (the decode and auxiliary heads of open-mmlab/mmsegmentation 1.2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.options import check_count, check_rates
from vision_ssm.layers.resize import resize, resize_rows

__all__ = ["BINS", "FCNHead", "Merged", "UPerHead"]

BINS = (1, 2, 3, 6)
"""Sides of the maps that pyramid pooling averages the coarsest map to."""

_HALO = 2  # rows that two 3 x 3 convolutions reach beyond a strip


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a lone value per channel as evaluation does: its own statistics would make it nothing.

    One image in training gives the pooled map of one position, which torch refuses. Running statistics stay as they
    are then.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, H, W]."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class ConvNormAct(nn.Module):
    """ReLU(BatchNorm(conv(x))); the convolution keeps the size and has no bias."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = BatchNorm(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C', H, W] to [B, C, H, W]."""
        return F.relu(self.bn(self.conv(x)))


class Merged(NamedTuple):
    """The maps of a pyramid joined from above, all but the finest: what its logits are decoded from, in rows.

    Attributes:
        finest: X_1.
        above: L_2.
        outputs: P_2, P_3, P_4.
    """

    finest: Tensor
    above: Tensor
    outputs: tuple[Tensor, ...]


class UPerHead(nn.Module):
    """The decode head.

    Args:
        in_channels: of the four maps, finest first.
        channels: width of everything inside.
        num_classes: of the logits.
        drop_rate: share of channels dropped before the classifier in training.

    Raises:
        ConfigError: not four maps, or a number out of range.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 512, num_classes: int = 150, drop_rate: float = 0.1
    ) -> None:
        super().__init__()
        if len(in_channels) != 4:
            raise ConfigError(f"the decode head takes four maps, got channels {list(in_channels)}")
        check_count("channels", channels)
        check_count("num_classes", num_classes)
        check_rates(drop_rate=drop_rate)
        *finer, coarsest = in_channels
        self.joined_channels = len(in_channels) * channels  # of the widest map, which is the finest
        self.conv_seg = _classifier(channels, num_classes)
        self.dropout = nn.Dropout2d(drop_rate)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNormAct(coarsest, channels, 1)) for side in BINS
        )
        self.bottleneck = ConvNormAct(coarsest + len(BINS) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvNormAct(self.joined_channels, channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [B, classes, h, w] of maps [B, C_i, h_i, w_i]; h and w are the first map's.

        Raises:
            ShapeError: not four maps.
        """
        return self.rows(self.merge(maps), 0, maps[0].shape[2])

    def merge(self, maps: Sequence[Tensor]) -> Merged:
        """Do everything that comes before the finest map, whose rows then cost memory only while they are decoded."""
        if len(maps) != 4:
            raise ShapeError(f"the decode head takes four maps, got {len(maps)}")
        coarsest = maps[3]
        pooled = [resize(module(coarsest), coarsest.shape[2:]) for module in self.psp_modules]
        lateral = self.bottleneck(torch.cat([coarsest, *pooled], dim=1))
        outputs = [lateral]
        for i in (2, 1):
            lateral = self.lateral_convs[i](maps[i]) + resize(lateral, maps[i].shape[2:])
            outputs.insert(0, self.fpn_convs[i](lateral))
        return Merged(maps[0], lateral, tuple(outputs))

    def rows(self, merged: Merged, start: int, stop: int) -> Tensor:
        """Return rows [B, classes, stop - start, w] of the logits."""
        size = merged.finest.shape[2:]
        top, bottom = max(start - _HALO, 0), min(stop + _HALO, size[0])
        lateral = self.lateral_convs[0](merged.finest[:, :, top:bottom])
        lateral = lateral + resize_rows(merged.above, size, top, bottom)
        parts = [self.fpn_convs[0](lateral), *(resize_rows(x, size, top, bottom) for x in merged.outputs)]
        fused = self.fpn_bottleneck(torch.cat(parts, dim=1))
        # Within the halo the convolutions saw zeros where the map goes on.
        logits: Tensor = self.conv_seg(self.dropout(fused[:, :, start - top : stop - top]))
        return logits


class FCNHead(nn.Module):
    """The auxiliary head: W drop(C(X)), C a 3 x 3 convolution with batch norm and ReLU.

    Args:
        in_channels: of the map.
        channels: width.
        num_classes: of the logits.
        drop_rate: share of channels dropped before the classifier in training.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, in_channels: int, channels: int = 256, num_classes: int = 150, drop_rate: float = 0.1) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("num_classes", num_classes)
        check_rates(drop_rate=drop_rate)
        self.conv_seg = _classifier(channels, num_classes)
        self.dropout = nn.Dropout2d(drop_rate)
        self.convs = nn.Sequential(ConvNormAct(in_channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes, h, w] of a map [B, C, h, w]."""
        logits: Tensor = self.conv_seg(self.dropout(self.convs(x)))
        return logits


def _classifier(channels: int, classes: int) -> nn.Conv2d:
    classifier = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]  # it has one
    return classifier
