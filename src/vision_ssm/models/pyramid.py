"""A 4/8/16/32 feature pyramid over a backbone whose maps all have one resolution, for dense tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.strips import Patches

__all__ = ["REDUCTIONS", "FeaturePyramid", "quarter_taps"]

REDUCTIONS = (4, 8, 16, 32)


def quarter_taps(steps: int) -> tuple[int, ...]:
    """The last block of each quarter of the network: the taps of Vim's published segmentation (5, 11, 17, 23 of 24)."""
    return tuple(sorted({max(math.ceil(steps * quarter / 4) - 1, 0) for quarter in (1, 2, 3, 4)}))


class FeaturePyramid(nn.Module):
    """timm ``feature_cls``: four maps at strides 4, 8, 16 and 32 from four depths of a columnar model.

    Each tap is brought to its stride by 2x2 transposed convolutions (batch norm and GELU between two of them) or by
    max pooling, and cut to ceil(size / stride), so padding added for whole patches does not show. The widths stay.

    Args:
        model: backbone with ``forward_intermediates`` and maps of one stride.
        out_indices: which of the four maps to return.
        taps: four blocks to read; default: the ends of the quarters.

    Source: the segmentation backbone of hustvl/Vim at dd0358a; SyncBN there, BatchNorm here (torch converts it).
    """

    output_fmt = "NCHW"

    def __init__(
        self, model: nn.Module, out_indices: Sequence[int] = (0, 1, 2, 3), taps: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        infos: Any = model.feature_info
        chosen = list(taps) if taps is not None else _four(quarter_taps(len(infos)))
        channels, stride = int(infos[0]["num_chs"]), int(infos[0]["reduction"])
        indices = tuple(index + len(REDUCTIONS) if index < 0 else index for index in out_indices)
        if len(chosen) != len(REDUCTIONS) or any(index not in range(len(REDUCTIONS)) for index in indices):
            raise ConfigError(
                f"a feature pyramid has {len(REDUCTIONS)} maps, got taps={list(chosen)} and out_indices="
                f"{list(out_indices)}"
            )
        patches: Any = getattr(model, "patch_embed", None)
        if patches is not None and patches.patch_size[0] != stride:
            raise ConfigError(
                f"a pyramid needs patches that do not overlap, got patch_size={patches.patch_size[0]} and "
                f"stride={stride}: their maps are shorter than size / stride and lie off its cells"
            )
        self.wanted = sorted({chosen[index] for index in indices})
        self.places = [self.wanted.index(chosen[index]) for index in indices]
        self.strides = [REDUCTIONS[index] for index in indices]
        self.ops = nn.ModuleList(_resize(channels, stride, target) for target in self.strides)
        self.body = FeatureGetterNet(model, out_indices=tuple(self.wanted))
        self.feature_info = FeatureInfo(
            [{"num_chs": channels, "reduction": r, "module": f"ops.{j}"} for j, r in enumerate(REDUCTIONS)], indices
        )

    def forward(self, x: Tensor | Patches, size: tuple[int, int] | None = None) -> list[Tensor]:
        """Return the chosen maps [B, D, ceil(H / s), ceil(W / s)] of images x [B, C, H, W].

        ``size`` is (H, W), which what `embed_strips` returned in the images' place does not tell.

        Raises:
            ShapeError: it is needed and not given.
        """
        maps = self.body(x)
        tokens = x.tokens if isinstance(x, Patches) else x
        if size is None and tokens is not x:
            raise ShapeError("the maps of embedded images are cut to the images' size; give it as (height, width)")
        height, width = size or tokens.shape[-2:]
        out = []
        for op, place, stride in zip(self.ops, self.places, self.strides, strict=True):
            tap = maps[place].to(tokens.dtype)  # the residual stream stays in float32 where weights and images are half
            out.append(op(tap)[..., : -(-height // stride), : -(-width // stride)])
        return out

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass."""
        backbone: Any = self.body.model
        backbone.set_grad_checkpointing(enable)


def _four(taps: tuple[int, ...]) -> list[int]:
    """A network of fewer than four blocks repeats its last tap."""
    return [*taps, *taps[-1:] * (len(REDUCTIONS) - len(taps))]


def _resize(channels: int, stride: int, target: int) -> nn.Module:
    steps = round(math.log2(stride / target))
    if target * 2.0**steps != stride:
        raise ConfigError(f"a pyramid needs a backbone whose stride is a power of two, got {stride}")
    if steps < 0:
        return nn.MaxPool2d(2**-steps, ceil_mode=True)
    parts: list[nn.Module] = []
    for _ in range(steps):
        if parts:
            parts += [nn.BatchNorm2d(channels), nn.GELU()]
        parts.append(nn.ConvTranspose2d(channels, channels, 2, 2))
    return nn.Sequential(*parts)
