"""EfficientVMamba: two stages of atrous scans beside convolutions, then two of inverted residuals.

Source: EfficientVMamba, arXiv:2403.09977 (AAAI 2025), and the authors' code (TerryPei/EfficientVMamba at 0bc5ee28,
classification/models/vmamba_efficient.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.models import register_notrace_module
from torch import nn

from vision_ssm.layers.downsample import make_downsample
from vision_ssm.layers.efficient_blocks import DualBranchBlock, InvertedResidual
from vision_ssm.layers.efficient_ss2d import STEP, EfficientSS2D
from vision_ssm.layers.options import check_rates, check_ratio
from vision_ssm.layers.stem import make_stem
from vision_ssm.models.hierarchical import Hierarchical, Stage, check_depths, drop_path_rates

__all__ = ["EfficientVMamba"]

SCANNED_STAGES = 2

# Symbolic tracing (torch.fx) sees this as one step: what it does depends on the size of the map.
register_notrace_module(EfficientSS2D)


class EfficientVMamba(Hierarchical):
    """EfficientVMamba classifier and feature extractor; images [B, in_chans, H, W] of any size.

    Args:
        img_size: nominal size; every size is accepted.
        patch_size: pixels per position of the first stage's maps.
        in_chans: image channels.
        num_classes: 0 for no head.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
        embed_dim: width of the first stage, doubled by each of the others; at least 8.
        depths: blocks of the four stages. The first two hold scans, the last two inverted residuals.
        d_state: N, states per channel.
        ssm_ratio: inner width of the scans over the stage's.
        mlp_ratio: hidden width of an MLP behind every scanning block, over the stage's; 0 for none, as released.
        scan_step: distance of the pixels that one scan visits; 2 only.
        downsample: between stages, 'v1' (patch merging, as released), 'v2' (2 x 2 convolution) or 'v3' (3 x 3).
        drop_rate: dropout before the classifier.
        drop_path_rate: p; what block j of M adds is dropped with probability p * j / (M - 1), counted over all stages.
        stage_norms: give every stage a LayerNorm of its own that is applied to the feature maps: the published
            backbone for dense tasks.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    def __init__(  # noqa: PLR0913 -- timm passes every option by name; each is described above
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 48,
        depths: Sequence[int] = (2, 2, 4, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 0.0,
        scan_step: int = STEP,
        downsample: str = "v1",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stage_norms: bool = False,
    ) -> None:
        check_depths(depths, embed_dim)
        check_rates(drop_path_rate=drop_path_rate)
        check_ratio("mlp_ratio", mlp_ratio, embed_dim)
        rates = drop_path_rates(drop_path_rate, depths)
        widths = [embed_dim * 2**i for i in range(len(depths))]
        stages = []
        for i, width in enumerate(widths):
            blocks: list[nn.Module] = [
                DualBranchBlock(
                    width,
                    EfficientSS2D(width, states=d_state, ratio=ssm_ratio, step=scan_step),
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                )
                if i < SCANNED_STAGES
                else InvertedResidual(width, drop_path=rate)
                for rate in rates[i]
            ]
            stages.append(Stage(blocks, make_downsample(downsample, widths[i - 1], width) if i else None))
        super().__init__(
            stem=make_stem("v1", in_chans, embed_dim, patch_size),
            stages=stages,
            widths=widths,
            stem_stride=patch_size,
            img_size=img_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            stage_norms=stage_norms,
        )
        self.init_weights()
