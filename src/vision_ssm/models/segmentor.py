"""A segmentor: a backbone's maps, UPerNet's decode head on all of them, an auxiliary head on the third.

    S = up(decode_head(X_1, ..., X_4))          logits at the size of the images
    S' = up(auxiliary_head(X_3))                in training, for a second loss

The heads are layers/uper_head.py; X_i are the maps of strides 4, 8, 16 and 32 of any backbone that timm builds with
``features_only=True``. Parameters are called as in the published VMamba segmentors, apart from the backbone's own.

Source: UPerNet, arXiv:1807.10221; open-mmlab/mmsegmentation 1.2.2 as VMamba's segmentors use it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.layers.patch_embed import PatchGrid
from vision_ssm.layers.resize import resize
from vision_ssm.layers.strips import Patches
from vision_ssm.layers.uper_head import FCNHead, UPerHead
from vision_ssm.models.in_words import in_words
from vision_ssm.models.pyramid import REDUCTIONS, FeaturePyramid, maps_of, other_patches

__all__ = ["Segmentor", "patch_side"]


def patch_side(backbone: nn.Module) -> int:
    """Return the side of the smallest image that a backbone takes; 1 where it does not cut images into patches."""
    embed = getattr(backbone, "patch_embed", None)
    return embed.patch_size[0] if isinstance(embed, PatchGrid) else 1


class Segmentor(nn.Module):
    """Backbone, decode head and auxiliary head.

    Args:
        backbone: of timm's ``features_only`` form, with maps at strides 4, 8, 16 and 32.
        num_classes: of the logits.
        channels: width of the decode head.
        auxiliary_channels: width of the auxiliary head; 0 for none.
        drop_rate: of both heads before their classifiers.

    Raises:
        ConfigError: the backbone has other maps, or a number is out of range.
    """

    published_task = "segmentation"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        channels: int = 512,
        auxiliary_channels: int = 256,
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        infos: Any = backbone.feature_info
        reductions, widths = tuple(infos.reduction()), list(infos.channels())
        if reductions != REDUCTIONS:
            raise ConfigError(
                f"segmentation needs a backbone with maps at strides {', '.join(map(str, REDUCTIONS))}, got "
                f"{', '.join(map(str, reductions))}.{other_patches(reductions)}"
            )
        self.num_classes = num_classes
        self.backbone = backbone
        self.decode_head = UPerHead(widths, channels, num_classes, drop_rate)
        self.auxiliary_head = (
            FCNHead(widths[2], auxiliary_channels, num_classes, drop_rate) if auxiliary_channels else None
        )

    def extra_repr(self) -> str:
        """What a printed model begins with."""
        return in_words(self)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits [B, classes, H, W] of images [B, C, H, W]; in training (logits, those of the auxiliary head).

        Without an auxiliary head it is a tuple of one.
        """
        maps = self.maps(images, (images.shape[2], images.shape[3]))
        logits = resize(self.decode_head(maps), images.shape[2:])
        if not self.training:
            return logits
        if self.auxiliary_head is None:
            return (logits,)
        return logits, resize(self.auxiliary_head(maps[2]), images.shape[2:])

    @property
    def inner(self) -> nn.Module:
        """The backbone as timm has it without ``features_only``: published weights are for it."""
        body: Any = getattr(self.backbone, "body", self.backbone)
        found: nn.Module = getattr(body, "model", body)
        return found

    def maps(self, x: Tensor | Patches, size: tuple[int, int]) -> list[Tensor]:
        """Return the backbone's maps of images of that (H, W), or of what `inner.embed_strips` returned for them.

        Images smaller than a patch are padded to one with zeros, at the bottom and right.
        """
        if isinstance(x, Tensor):
            below, right = (max(patch_side(self.inner) - side, 0) for side in size)
            x = F.pad(x, (0, right, 0, below)) if below or right else x
        return maps_of(self.backbone, x, *([size] if isinstance(self.backbone, FeaturePyramid) else []))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping what is inside them."""
        backbone: Any = self.backbone
        backbone.set_grad_checkpointing(enable)
