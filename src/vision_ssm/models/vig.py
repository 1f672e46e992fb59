"""ViG: a plain column of gated linear attention, both ways, over patch tokens.

    x_0 = patches(image) + E_pos                                 a map [B, h, w, D]
    x_l = block_l(x_(l-1))                                       l = 1..depth; layers/gla_block.py
    logits = head(mean over all positions of RMSNorm(x_depth))

Source: ViG, arXiv:2405.18425, and the authors' code (hustvl/ViG at dfb9d32, classification/models/vig.py);
docs/families/vig.md lists where this differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import checkpoint, register_notrace_function, register_notrace_module
from torch import Tensor, nn

from vision_ssm.layers import one_call
from vision_ssm.layers.conv_patch_embed import ConvPatchEmbed
from vision_ssm.layers.gated_mlp import GatedMlp
from vision_ssm.layers.gla_block import GLABlock
from vision_ssm.layers.gla_mixer import EPS, GLAMixer
from vision_ssm.layers.initial import truncated_normal_
from vision_ssm.layers.norms import RMSNorm
from vision_ssm.layers.options import check_count, check_flags, check_rates
from vision_ssm.layers.positions import resample_table
from vision_ssm.layers.strips import Patches
from vision_ssm.models.columnar import Columnar, init_head
from vision_ssm.ops.transforms import transformed

__all__ = ["ViG"]

MLP_MULTIPLE = 256

# Symbolic tracing (torch.fx) sees these as one step: what they do depends on the number of tokens.
register_notrace_module(ConvPatchEmbed)
register_notrace_module(GLAMixer)
register_notrace_function(resample_table)  # type: ignore[no-untyped-call]


class ViG(Columnar):
    """ViG classifier and feature extractor; images [B, in_chans, H, W] of any size from one patch up.

    Args:
        img_size: nominal size, that of the position table; other sizes get positions resampled at their true places,
            unless ``dynamic_img_size`` is False.
        patch_size: pixels per token, an even number from 4.
        in_chans: image channels.
        num_classes: 0 for no head.
        global_pool: what the head reads. 'avg': the mean of the tokens. 'last': the last one. 'max': the maximum over
            the tokens' logits, as in Vim. '': nothing is pooled. None: 'avg'.
        embed_dim: D, an even number.
        depth: number of blocks.
        head_dim: value channels of a head, of which it has half as many for keys; a narrower model has one head.
        conv_act: SiLU after the mixer's convolution, as in ViG-T.
        out_act: SiLU before the mixer's last projection, as in ViG-T.
        drop_rate: dropout after the position embedding.
        drop_path_rate: p; the branches of block j are dropped with probability p * j / (depth - 1).
        dynamic_img_size: accept other sizes than ``img_size``.

    Raises:
        ConfigError: a value is unknown or out of range, or two options contradict each other.
    """

    class_token = "none"
    num_prefix_tokens = 0
    has_class_token = False

    def __init__(  # noqa: PLR0913 -- timm passes every option by name; each is described above
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        embed_dim: int = 192,
        depth: int = 12,
        head_dim: int = 64,
        conv_act: bool = True,
        out_act: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = True,
    ) -> None:
        super().__init__()
        for option, value, least in (("embed_dim", embed_dim, 2), ("depth", depth, 1), ("num_classes", num_classes, 0)):
            check_count(option, value, least)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_flags(dynamic_img_size=dynamic_img_size)
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.global_pool = self._checked_pool(global_pool)
        self.grad_checkpointing = False
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = ConvPatchEmbed(img_size, patch_size, in_chans, embed_dim, strict=not dynamic_img_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        mixing: dict[str, Any] = {"head_dim": head_dim, "conv_act": conv_act, "out_act": out_act, "quarter": True}
        self.blocks = nn.ModuleList(
            GLABlock(
                RMSNorm(embed_dim, EPS),
                GLAMixer(embed_dim, **mixing),
                RMSNorm(embed_dim, EPS),
                GatedMlp(embed_dim, MLP_MULTIPLE),
                drop_path_rate * j / max(depth - 1, 1),
            )
            for j in range(depth)
        )
        self.column = one_call.GlaColumn()
        self.norm = RMSNorm(embed_dim, EPS)
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{j}"} for j in range(depth)
        ]
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the published initial values of everything outside the mixers, which draw their own."""
        truncated_normal_(self.pos_embed)
        blocks: Any = self.blocks
        for block in blocks:
            for layer in (block.mlp.fc1, block.mlp.fc2):
                nn.init.normal_(layer.weight, std=0.02)
        init_head(self.head)

    def no_weight_decay(self) -> set[str]:
        """No names: the published recipe decays the position table too, and leaves out what is one-dimensional."""
        return set()

    def forward(self, x: Tensor | Patches) -> Tensor:
        """Classify images [B, in_chans, H, W], or what :meth:`embed_strips` returned; logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor | Patches) -> Tensor:
        """Return the normalised tokens [B, M, D] row by row."""
        tokens, grid = self._embed(x)
        normalised: Tensor = self.norm(self._runner(tokens, grid)(tokens, 0, len(self.blocks)))
        return normalised

    def _embed(self, x: Tensor | Patches) -> tuple[Tensor, tuple[int, int]]:
        """Images or patches to the residual stream [B, M, D], at least float32, and the patch grid."""
        tokens, grid = x if isinstance(x, Patches) else self.patch_embed(x)
        wide = torch.promote_types(self.pos_embed.dtype, torch.float32)
        return self.pos_drop(tokens.to(wide) + self._positions(grid)), grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions [1, M, D] for a grid of patches."""
        patch = self.patch_embed.stride
        return resample_table(self.pos_embed, self.class_token, self.patch_embed.grid_size, grid, patch, patch)

    def _runner(self, tokens: Tensor, grid: tuple[int, int]) -> Callable[[Tensor, int, int], Tensor]:
        whole = None if self.grad_checkpointing else self.column.segments(self.blocks, torch.unflatten(tokens, 1, grid))

        def run(tokens: Tensor, start: int, stop: int) -> Tensor:
            x = torch.unflatten(tokens, 1, grid)
            if whole is not None:
                return whole(x, start, stop).flatten(1, 2)
            for block in self.blocks[start:stop]:
                x = checkpoint(block, x) if self.grad_checkpointing and not transformed() else block(x)
            return x.flatten(1, 2)

        return run
