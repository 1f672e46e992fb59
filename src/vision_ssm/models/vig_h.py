"""ViG-H: four stages of gated linear attention, both ways along the rows of a map.

    h = x + mixer(LayerNorm(x)),   y = h + MLP(LayerNorm(h))     layers/gla_block.py, on x [B, H, W, C]

Source: ViG, arXiv:2405.18425, and the authors' code (hustvl/ViG at dfb9d32, classification/models/vig_h.py);
docs/families/vig_h.md lists where this differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.models import register_notrace_module
from torch import nn

from vision_ssm.layers.downsample import make_downsample
from vision_ssm.layers.gated_mlp import GatedMlp
from vision_ssm.layers.gla_block import GLABlock
from vision_ssm.layers.gla_mixer import GLAMixer
from vision_ssm.layers.options import check_rates
from vision_ssm.layers.stem import make_stem
from vision_ssm.models.hierarchical import EPS, Hierarchical, Stage, check_depths, drop_path_rates

__all__ = ["HierarchicalViG"]

MLP_MULTIPLE = 32

# Symbolic tracing (torch.fx) sees this as one step: what it does depends on the size of the map.
register_notrace_module(GLAMixer)


class HierarchicalViG(Hierarchical):
    """ViG-H classifier and feature extractor; images [B, in_chans, H, W] of any size.

    Args:
        img_size: nominal size; every size is accepted, and nothing depends on it.
        patch_size: pixels per position of the first stage, 4 or 2; the stages are at 1, 2, 4 and 8 times that.
        in_chans: image channels.
        num_classes: 0 for no head.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax' or '' for none.
        embed_dim: width of the first stage, an even number; each next one doubles it.
        depths: blocks per stage.
        head_dim: value channels of a head, of which it has half as many for keys; a narrower stage has one head.
        drop_rate: dropout before the classifier.
        drop_path_rate: p; the branches of block j are dropped with probability p * j / (blocks - 1).
        stage_norms: LayerNorms of the feature maps, as in the published backbone for dense tasks.

    Raises:
        ConfigError: a value is unknown or out of range, or two options contradict each other.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 5, 2),
        head_dim: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stage_norms: bool = False,
    ) -> None:
        check_depths(depths, embed_dim)
        check_rates(drop_path_rate=drop_path_rate)
        widths = [embed_dim * 2**i for i in range(len(depths))]
        stages = []
        for i, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [
                GLABlock(
                    nn.LayerNorm(width, eps=EPS),
                    GLAMixer(width, head_dim=head_dim),
                    nn.LayerNorm(width, eps=EPS),
                    GatedMlp(width, MLP_MULTIPLE),
                    rate,
                )
                for rate in rates
            ]
            stages.append(Stage(blocks, make_downsample("v3", widths[i - 1], width) if i else None))
        super().__init__(
            stem=make_stem("v2", in_chans, embed_dim, patch_size),
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
