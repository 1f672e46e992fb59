"""EfficientVMamba's two kinds of block: a scan and a convolution side by side (EVSS), and the inverted residual.

    EVSS:      n = LayerNorm(x)                                  x [B, H, W, C]
               x + SE(ES2D(n)) + SE(Conv1x1(GELU(BN(DWConv3x3(n)))))
               SE(v) = v ⊙ σ(W2 GELU(W1 mean over the map of LayerNorm(v)))

    inverted:  v = ReLU(BN(Conv1x1(x)))                          C to 4C
               v = SE(ReLU(BN(DWConv3x3(v))))                    SE(v) = v ⊙ σ(W2 ReLU(W1 mean over the map of v))
               x + BN(Conv1x1(v))                                4C to C

Source: EfficientVMamba, arXiv:2403.09977, section 3.3 and fig. 4; ES2D is layers/efficient_ss2d.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.layers.one_call import add_and_norm
from vision_ssm.layers.untouched import untouched

__all__ = ["DualBranchBlock", "InvertedResidual", "PointwiseConv", "SqueezeExcite", "SqueezeGate"]

# Fixed in the published code (classification/lib/models/operations.py).
EXPANSION = 4
SQUEEZE = 8


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution, computed as the matrix product that it is; best of images in channels_last format."""

    def __init__(self, channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images [B, C, H, W]; returns [B, out_channels, H, W] in channels_last format."""
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class SqueezeGate(nn.Module):
    """sigmoid(W2 GELU(W1 mean over the map of LayerNorm(v))): gates for v itself, the norm coming before the mean.

    Args:
        channels: C.
        reduction: the squeezed width is C // reduction.

    Raises:
        ConfigError: nothing is left after the reduction.

    Source: "BiAttn" in EfficientVMamba's code; the squeeze-and-excitation of arXiv:1709.01507 with a norm.
    """

    def __init__(self, channels: int, reduction: int = SQUEEZE) -> None:
        super().__init__()
        if channels < reduction:
            raise ConfigError(f"squeeze-excite keeps 1/{reduction} of the channels, and {channels} leave none")
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, v: Tensor) -> Tensor:
        """Return the gates [B, 1, 1, C] of a map v [B, H, W, C]."""
        squeezed = self.norm(v).mean((1, 2), keepdim=True)
        return torch.sigmoid(self.expand(F.gelu(self.reduce(squeezed))))


class DualBranchBlock(nn.Module):
    """x + DropPath(SE(mixer(n)) + SE(convolutions(n))), n = norm(x); then an MLP of its own norm if asked for.

    One squeeze-excite serves both branches and gates each by itself, as published.

    Args:
        channels: C.
        mixer: maps [B, H, W, C] to the same shape.
        mlp_ratio: hidden width of the MLP over C; 0 for none, as in every released model.
        drop_path: probability of dropping what is added, per image.

    Source: EfficientVMamba, arXiv:2403.09977, section 3.3 (EVSS).
    """

    def __init__(self, channels: int, mixer: nn.Module, *, mlp_ratio: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mixer = mixer
        self.branch_dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.branch_norm = nn.BatchNorm2d(channels)
        self.branch_pw = PointwiseConv(channels, channels)
        self.se = SqueezeGate(channels)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(channels) if mlp_ratio > 0 else None
        self.mlp = Mlp(channels, int(channels * mlp_ratio)) if mlp_ratio > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on the stream x [B, H, W, C]."""
        normalised = self.norm(x)
        # Channel-last maps are images in channels_last format: the permutations are views.
        convolved = self.branch_norm(self.branch_dw(normalised.permute(0, 3, 1, 2)))
        convolved = self.branch_pw(F.gelu(convolved)).permute(0, 2, 3, 1)
        mixed = self.mixer(normalised)
        added: Tensor = self.drop_path(mixed * self.se(mixed) + convolved * self.se(convolved))
        if self.mlp is None or self.norm2 is None:
            return x + added
        x, normalised = add_and_norm(self.norm2, x, added)
        transformed: Tensor = self.drop_path(self.mlp(normalised))
        return x + transformed


class SqueezeExcite(nn.Module):
    """v * sigmoid(W2 ReLU(W1 mean over the map of v)), the usual squeeze-and-excitation.

    Args:
        channels: C.
        squeezed: width between the two layers.

    Source: arXiv:1709.01507, section 3.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce = PointwiseConv(channels, squeezed)
        self.conv_expand = PointwiseConv(squeezed, channels)

    def forward(self, v: Tensor) -> Tensor:
        """Gate images v [B, C, H, W]; returns the same shape."""
        squeezed = v.mean((2, 3), keepdim=True)
        return v * torch.sigmoid(self.conv_expand(F.relu(self.conv_reduce(squeezed))))


class InvertedResidual(nn.Module):
    """To 4C, depthwise 3 x 3, squeeze-excite, back to C, added to the input.

    BatchNorm after each of the three convolutions, ReLU after the first two; nothing is normalised before, and nothing
    activated after the addition.

    Args:
        channels: C.
        drop_path: probability of dropping what is added, per image.

    Source: MobileNetV2 and V3, arXiv:1801.04381 and arXiv:1905.02244, as used in EfficientVMamba's last two stages.
    """

    def __init__(self, channels: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.conv_pw = PointwiseConv(channels, inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv_dw = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.se = SqueezeExcite(inner, inner // SQUEEZE)
        self.conv_pwl = PointwiseConv(inner, channels, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on the stream x [B, H, W, C]."""
        # A channel-last map is an image in channels_last format: the permutations are views.
        overwrite = untouched(self.bn1, self.bn2)  # else somebody may keep what they return
        v = F.relu(self.bn1(self.conv_pw(x.permute(0, 3, 1, 2))), inplace=overwrite)
        v = F.relu(self.bn2(self.conv_dw(v)), inplace=overwrite)
        v = self.bn3(self.conv_pwl(self.se(v)))
        added: Tensor = self.drop_path(v.permute(0, 2, 3, 1))
        return x + added
