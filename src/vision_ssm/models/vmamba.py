"""VMamba: four stages of blocks that scan the map along its rows and columns, both ways.

    h = x + SS2D(LayerNorm(x))                                   the VSS block, on x [B, H, W, C]
    y = h + W2 GELU(W1 LayerNorm(h) + b1) + b2                   not in the first version

SS2D is layers/ss2d.py; dropped paths are left out above.

Source: VMamba, arXiv:2401.10166, and the authors' code (MzeroMiko/VMamba at 2ed52ead,
classification/models/vmamba.py); docs/families/vmamba.md lists where this differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models import register_notrace_function, register_notrace_module
from torch import Tensor, nn

from vision_ssm.layers import one_call, resample_grid
from vision_ssm.layers.downsample import make_downsample
from vision_ssm.layers.initial import truncated_normal_
from vision_ssm.layers.options import check_flags, check_rates, check_ratio
from vision_ssm.layers.ss2d import SS2D
from vision_ssm.layers.stem import make_stem
from vision_ssm.layers.strips import Patches
from vision_ssm.models.hierarchical import EPS, Hierarchical, Stage, check_depths, drop_path_rates

__all__ = ["VMamba", "VMambaBlock"]

# Symbolic tracing (torch.fx) sees this as one step: what it does depends on the size of the map.
register_notrace_module(SS2D)


class VMambaBlock(nn.Module):
    """x + DropPath(SS2D(norm(x))), then, unless ``mlp_ratio`` is 0, x + DropPath(MLP(norm2(x))).

    Args:
        channels: C.
        mixer: maps [B, H, W, C] to the same shape.
        mlp_ratio: width of the MLP over C.
        drop_path: probability of dropping either branch, per image.
    """

    def __init__(self, channels: int, mixer: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(channels, eps=EPS) if mlp_ratio else None
        self.mlp = Mlp(channels, int(channels * mlp_ratio)) if mlp_ratio else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on a map x [B, H, W, C]."""
        added: Tensor = self.drop_path(self.mixer(self.norm(x)))
        if self.norm2 is None or self.mlp is None:
            return x + added
        whole = one_call.mlp_branch(self, x, added)
        if whole is not None:
            return whole
        x, normalised = one_call.add_and_norm(self.norm2, x, added)
        transformed: Tensor = self.drop_path(self.mlp(normalised))
        return x + transformed


class VMamba(Hierarchical):
    """VMamba classifier and feature extractor; images [B, in_chans, H, W] of any size.

    Args:
        img_size: nominal size, that of the position table if there is one.
        patch_size: pixels per position of the first stage; the stages are at 1, 2, 4 and 8 times that.
        in_chans: image channels.
        num_classes: 0 for no head.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax' or '' for none.
        embed_dim: width of the first stage; each next one doubles it.
        depths: blocks per stage.
        d_state: N, states per channel.
        ssm_ratio: width of the scan over that of the tokens.
        mlp_ratio: width of the MLP over that of the tokens; 0 for blocks without MLP.
        scan_pattern: 'cross', 'unidirectional', 'bidirectional' or 'cascade', see :class:`SS2D`.
        gate: multiply what was scanned by a second projection of the input.
        conv: have the depthwise convolution before the scan.
        conv_bias: give it a bias.
        act_layer: activation of the mixer ('silu', 'gelu', 'relu', 'sigmoid'); that of the MLP is GELU.
        out_norm: 'layer', 'none', 'conv', 'layer_conv', 'softmax' or 'sigmoid', see :class:`SS2D`.
        stem: 'v1' (one convolution over patches) or 'v2' (two overlapping ones).
        downsample: 'v1' (patch merging), 'v2' (2 x 2 convolution) or 'v3' (3 x 3 with overlap).
        pos_embed: add a learned position map after the stem; it is resampled for other image sizes.
        drop_rate: dropout before the classifier; the published models have none.
        drop_path_rate: p; the branches of block j are dropped with probability p * j / (blocks - 1).
        stage_norms: LayerNorms of the feature maps, as in the published backbone for dense tasks.

    Raises:
        ConfigError: a value is unknown or out of range, or two options contradict each other.
    """

    def __init__(  # noqa: PLR0913 -- timm passes every option by name; each is described above
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        scan_pattern: str = "cross",
        gate: bool = False,
        conv: bool = True,
        conv_bias: bool = False,
        act_layer: str = "silu",
        out_norm: str = "layer",
        stem: str = "v2",
        downsample: str = "v3",
        pos_embed: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stage_norms: bool = False,
    ) -> None:
        check_depths(depths, embed_dim)
        check_rates(drop_path_rate=drop_path_rate)
        check_ratio("mlp_ratio", mlp_ratio, embed_dim)
        check_flags(pos_embed=pos_embed)
        widths = [embed_dim * 2**i for i in range(len(depths))]
        stages = []
        for i, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [
                VMambaBlock(
                    width,
                    SS2D(
                        width,
                        states=d_state,
                        ratio=ssm_ratio,
                        scan_pattern=scan_pattern,
                        gate=gate,
                        conv=conv,
                        conv_bias=conv_bias,
                        act_layer=act_layer,
                        out_norm=out_norm,
                    ),
                    mlp_ratio,
                    rate,
                )
                for rate in rates
            ]
            stages.append(Stage(blocks, make_downsample(downsample, widths[i - 1], width) if i else None))
        super().__init__(
            stem=make_stem(stem, in_chans, embed_dim, patch_size),
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
        self.pos_embed = nn.Parameter(torch.empty(1, embed_dim, *self._grid(self.img_size))) if pos_embed else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the published initial values of what does not draw its own."""
        super().init_weights()
        if self.pos_embed is not None:
            truncated_normal_(self.pos_embed)

    def embed(self, x: Tensor | Patches) -> Tensor:
        """Return the first stage's input [B, h, w, C] of images or patches x, positions added."""
        embedded = super().embed(x)
        return embedded if self.pos_embed is None else add_positions(embedded, self.pos_embed)

    def set_input_size(self, img_size: int | Sequence[int] | None = None) -> None:
        """Change the nominal image size, resampling the position table if there is one."""
        super().set_input_size(img_size)
        if self.pos_embed is not None:
            table = resample_map(self.pos_embed.detach(), self._grid(self.img_size))
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)

    def fit_positions(self, table: Tensor, rule: str) -> Tensor:
        """Resize a checkpoint's position table [1, C, H, W] to this model's grid, bicubically.

        Args:
            table: the published shape, which is ours.
            rule: 'grid' or 'published'; for whole patches without class token both are the same.
        """
        del rule
        return resample_map(table, self._grid(self.img_size))

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // self.stem_stride), -(-size[1] // self.stem_stride)


def resample_map(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample a position map [1, C, H, W] to another (height, width) of the same picture."""
    source = (table.shape[2], table.shape[3])
    if source == grid:
        return table
    rows = resample_grid(table.flatten(2).transpose(1, 2), source, grid, 1, 1)
    return rows.transpose(1, 2).reshape(1, -1, *grid)


def add_positions(x: Tensor, table: Tensor) -> Tensor:
    """Add the position map [1, C, H, W], resampled to the map x [B, h, w, C]."""
    return x + resample_map(table, (x.shape[1], x.shape[2])).permute(0, 2, 3, 1)


register_notrace_function(add_positions)  # type: ignore[no-untyped-call]
