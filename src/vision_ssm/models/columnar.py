"""What columnar families share: one map of tokens from first to last block, and timm's doors to such a backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.layers.initial import truncated_normal_
from vision_ssm.layers.options import check_choice, check_count
from vision_ssm.layers.patch_embed import PatchGrid
from vision_ssm.layers.positions import (
    insert_rows,
    published_interpolation,
    resample_grid,
    resample_table,
    split_rows,
)
from vision_ssm.layers.strips import Patches
from vision_ssm.models.in_words import in_words

__all__ = ["POOLS", "Columnar", "init_head"]

POOLS = ("token", "avg", "max", "last")


class Columnar(nn.Module):
    """Patches and class tokens with a table of positions, blocks on their stream, a norm and a linear head.

    A family's constructor makes what is named below; this class has what does not depend on the blocks.
    """

    patch_embed: PatchGrid
    pos_embed: nn.Parameter
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    class_token: str
    global_pool: str
    embed_dim: int
    num_classes: int
    num_prefix_tokens: int
    has_class_token: bool
    grad_checkpointing: bool

    @property
    def _layers_per_step(self) -> int:
        """Blocks that transform the stream together."""
        return 1

    def extra_repr(self) -> str:
        """What a printed model begins with."""
        return in_words(self)

    def _embed(self, x: Tensor | Patches) -> tuple[Tensor, tuple[int, int]]:
        """Images or patches to the stream [B, M + T, D] before the first block, and the grid of patches."""
        raise TypeError(f"{type(self).__name__} does not say how it embeds images")

    def _runner(self, tokens: Tensor, grid: tuple[int, int]) -> Callable[[Tensor, int, int], Tensor]:
        """Return a function of (stream, start, stop): a stream like ``tokens`` after so many blocks or groups."""
        raise TypeError(f"{type(self).__name__} does not say how it runs its blocks")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what is inside them.

        ``torch.func`` keeps everything all the same: it does not go together with recomputing.
        """
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head, and the pooling if one is named ('' for none)."""
        check_count("num_classes", num_classes, 0)
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool)
        self.num_classes = num_classes
        like = self.pos_embed
        self.head = (
            nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
        init_head(self.head)

    def set_input_size(self, img_size: int | Sequence[int] | None = None, patch_size: int | None = None) -> None:
        """Change the nominal image size, resampling the position table; the patch size is fixed."""
        own = self.patch_embed.patch_size
        if patch_size is not None and patch_size not in (own, own[0]):
            raise ConfigError(f"the patch size of a built model is fixed at {own[0]}, got {patch_size}")
        if img_size is None:
            return
        before = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size)
        after = self.patch_embed.grid_size
        if after != before:
            table = resample_table(
                self.pos_embed.detach(), self.class_token, before, after, own[0], self.patch_embed.stride
            )
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.patch_embed.img_size)

    def fit_positions(self, table: Tensor, rule: str) -> Tensor:
        """Resize a checkpoint's position table, of a square grid, to this model's grid.

        Args:
            table: [1, rows, D].
            rule: 'grid' (true places) or 'published' (see positions.published_interpolation).
        """
        target, patch, stride = self.patch_embed.grid_size, self.patch_embed.patch_size[0], self.patch_embed.stride
        if rule == "published":
            if target[0] != target[1]:
                raise CheckpointError(f"the published interpolation makes square grids only, the model has {target}")
            return published_interpolation(table, target[0], self.num_prefix_tokens)
        grid, rows = split_rows(table, self.class_token)
        side = math.isqrt(grid.shape[1])
        # The table does not say its stride: whole patches over this very image size, else the model's own.
        whole = self.patch_embed.img_size == (side * patch, side * patch)
        resized = resample_grid(grid, (side, side), target, patch, (patch if whole else stride, stride))
        return insert_rows(resized, rows, self.class_token)

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips, see :meth:`PatchGrid.embed_strips`.

        All forward methods take the result in the place of the images.
        """
        return self.patch_embed.embed_strips(strips, size)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what :meth:`forward_features` returned.

        ``pre_logits`` gives one vector per image (tokens with global_pool=''); with 'max' that is the maximum of the
        features, whereas the logits are the maximum of every token's logits.
        """
        if self.global_pool == "max":
            return (x if pre_logits else self.head(x)).amax(dim=1)
        if self.global_pool == "token":
            x = x[:, : self.num_prefix_tokens].mean(dim=1) if self.num_prefix_tokens > 1 else x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        elif self.global_pool == "last":
            x = x[:, -1]
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor | Patches,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the final tokens and the stream after chosen blocks (or groups of blocks that go together).

        Args:
            x: images [B, in_chans, H, W], or patches.
            indices: the last n if a number, all if None, else those.
            return_prefix_tokens: give (map, class tokens) pairs; maps alone if there is no class token.
            norm: apply the final norm to each.
            stop_early: do not run the blocks after the last chosen one.
            output_fmt: 'NCHW' for maps [B, D, h, w], 'NLC' for patch tokens [B, M, D].
            intermediates_only: leave the final tokens out.

        Returns:
            (tokens as :meth:`forward_features`, list), or the list.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
        steps = len(self.blocks) // self._layers_per_step
        taken, _ = feature_take_indices(steps, indices)
        tokens, (height, width) = self._embed(x)
        taps = []
        run, start = self._runner(tokens, (height, width)), 0
        for j in sorted(set(taken)):
            tokens, start = run(tokens, start, j + 1), j + 1
            taps.append(split_rows(self.norm(tokens) if norm else tokens, self.class_token))
        if not stop_early:
            tokens = run(tokens, start, steps)
        patches = [tap for tap, _ in taps]
        if output_fmt == "NCHW":
            patches = [p.transpose(1, 2).reshape(p.shape[0], -1, height, width) for p in patches]
        found: list[Any] = list(patches)
        if return_prefix_tokens and self.num_prefix_tokens:
            found = [(patch, prefix) for patch, (_, prefix) in zip(patches, taps, strict=True)]
        return found if intermediates_only else (self._prefix_first(self.norm(tokens)), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks that the chosen intermediates do not need, and the norm and head if asked to."""
        each = self._layers_per_step
        taken, last = feature_take_indices(len(self.blocks) // each, indices)
        self.blocks = self.blocks[: (last + 1) * each]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)

    def _prefix_first(self, x: Tensor) -> Tensor:
        if self.class_token in ("none", "head"):
            return x
        patches, rows = split_rows(x, self.class_token)
        return torch.cat([rows, patches], dim=1)

    def _checked_pool(self, pool: str | None) -> str:
        """Resolve and check the pooling against the class token."""
        if pool is None:
            return "token" if self.has_class_token else "avg"
        check_choice("global_pool", pool, (*POOLS, ""))
        if pool == "token" and not self.has_class_token:
            raise ConfigError("global_pool='token' reads the class token, but class_token='none'; use avg, max or last")
        if pool in ("max", "last") and self.has_class_token:
            raise ConfigError(
                f"global_pool={pool!r} reads a sequence of patches, but class_token={self.class_token!r} puts another "
                "token into it (published code would then take the maximum over classes); use class_token='none'"
            )
        return pool


def init_head(head: nn.Module) -> None:
    """Draw the published initial values of a linear head."""
    if isinstance(head, nn.Linear):
        truncated_normal_(head.weight)
        nn.init.zeros_(head.bias)
