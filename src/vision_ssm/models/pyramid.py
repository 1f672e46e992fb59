"""A 4/8/16/32 feature pyramid over a backbone whose maps all have one resolution, for dense tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.options import check_choice, check_flags
from vision_ssm.layers.strips import Patches

__all__ = ["REDUCTIONS", "TAPS", "FeaturePyramid", "maps_of", "other_patches", "quarter_taps"]

REDUCTIONS = (4, 8, 16, 32)
TAPS = ("stream", "branch")


def quarter_taps(steps: int) -> tuple[int, ...]:
    """The last block of each quarter of the network: the taps of Vim's published segmentation (5, 11, 17, 23 of 24)."""
    return tuple(sorted({max(math.ceil(steps * quarter / 4) - 1, 0) for quarter in (1, 2, 3, 4)}))


def maps_of(backbone: nn.Module, images: Tensor | Patches, *size: tuple[int, int]) -> list[Tensor]:
    """Return a backbone's maps. Raises ShapeError where one of timm's asserts another size of images [B, C, H, W]."""
    try:
        found: list[Tensor] = backbone(images, *size)
    except AssertionError as error:
        sides = tuple(images.shape[2:]) if isinstance(images, Tensor) else size[0]
        raise ShapeError(
            f"the backbone does not take images of {sides}: {error} timm's transformers take every "
            "size with model.options dynamic_img_size and dynamic_img_pad true; other sizes of images are set by "
            "data.short_side and model.img_size in training, and by --img-size and --window afterwards."
        ) from error
    return found


class FeaturePyramid(nn.Module):
    """timm ``feature_cls``: four maps at strides 4, 8, 16 and 32 from four depths of a columnar model.

    Each tap is brought to its stride by 2x2 transposed convolutions (batch norm and GELU between two of them) or by
    max pooling, and cut to ceil(size / stride), so padding added for whole patches does not show. The widths stay.

    Args:
        model: backbone with ``forward_intermediates`` and maps of one stride.
        out_indices: which of the four maps to return.
        taps: four blocks to read; default: the ends of the quarters.
        tap: 'stream', the residual stream after the block, or 'branch', what the block added to it (the mixer's output
            in Vim).
        last_norm: put the last tap through the model's final norm.

    Source: the segmentation backbone of hustvl/Vim at dd0358a, whose options `use_residual_as_feature` and
    `last_layer_process` these are; SyncBN there, BatchNorm here (torch converts it).

    Raises:
        ConfigError: an option is unknown or does not go with the model.
    """

    output_fmt = "NCHW"

    def __init__(
        self,
        model: nn.Module,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        taps: Sequence[int] | None = None,
        *,
        tap: str = "stream",
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        check_choice("tap", tap, TAPS)
        check_flags(last_norm=last_norm)
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
        self.taps, self.branch = [chosen[index] for index in indices], tap == "branch"
        if self.branch and 0 in self.taps:
            raise ConfigError("tap='branch' reads what a block added to the one before it; the first block has none")
        self.wanted = sorted({*self.taps, *(block - 1 for block in self.taps if self.branch)})
        # Kept before the blocks' getter drops it from the model; None where it is not used.
        self.last_norm: Any = model.norm if last_norm else None
        self.last_tap = chosen[-1]
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
        stream = dict(zip(self.wanted, maps, strict=True))
        for op, block, stride in zip(self.ops, self.taps, self.strides, strict=True):
            tap = stream[block] - stream[block - 1] if self.branch else stream[block]
            if self.last_norm is not None and block == self.last_tap:
                tap = self.last_norm(tap.movedim(1, -1)).movedim(-1, 1)
            tap = tap.to(tokens.dtype)  # the residual stream stays in float32 where weights and images are half
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


def other_patches(strides: Sequence[int]) -> str:
    """Say which option gives a model of this library maps at `REDUCTIONS`, if it is half or twice as fine."""
    if not strides or tuple(s * REDUCTIONS[0] for s in strides) != tuple(r * strides[0] for r in REDUCTIONS):
        return ""
    return f" Patches of {REDUCTIONS[0]} pixels may give them: patch_size={REDUCTIONS[0]} among the model's options."
