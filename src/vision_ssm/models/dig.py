"""DiG: a denoiser of images, or of latents, that scans its tokens in four orders in turn.

    c = SiLU(E_t(t) + E_y(y))                                    layers/conditioning.py
    x_0 = patches(x) + E_pos                                     a map [B, h, w, D]; E_pos is fixed
    x_l = block_l(x_(l-1), c)                                    l = 1..depth; layers/dig_block.py
    (ε, v) = unpatch(W modulate(x_depth, c))                     noise and, where it is learned, variance

With ``skip``, block l of the second half but its first joins x_(depth-l), as a U-shape does.

Source: DiG, arXiv:2405.18428, and the authors' code (hustvl/DiG at e3ac0ba, models_dig.py); docs/families/dig.md lists
where this differs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import checkpoint
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.conditioning import ClassEmbed, ModulatedOutput, TimestepEmbed
from vision_ssm.layers.dig_block import DiGBlock
from vision_ssm.layers.directed_gla import ORDERS
from vision_ssm.layers.options import check_count, check_flags, check_rates
from vision_ssm.layers.patch_embed import PatchEmbed
from vision_ssm.layers.positions import sincos_table
from vision_ssm.models.in_words import in_words
from vision_ssm.ops.transforms import transformed

__all__ = ["DiG"]


class DiG(nn.Module):
    """DiG denoiser of noisy images or latents [B, in_chans, H, W], H and W any multiples of the patch size.

    Args:
        img_size: nominal side, or (height, width), in pixels or values of the latent: that of the position table that
            is kept with the weights. Other sizes get the same fixed positions, computed for their grid.
        patch_size: side of a token.
        in_chans: channels of the image or latent.
        num_classes: classes to be told; label ``num_classes`` is that of no class.
        class_dropout: in training, the probability with which a label is taken for that of no class.
        embed_dim: D, a multiple of 4.
        depth: number of blocks.
        head_dim: value channels of a head, of which it has half as many for keys; a narrower model has one head.
        learn_sigma: give the channels of a variance behind those of the noise.
        skip: join the second half of the blocks with the first; needs an even depth of at least 4.
        skip_zero: the joints begin as if there were none.

    Raises:
        ConfigError: a value is out of range, or two options contradict each other.
    """

    published_task = "generation"

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        in_chans: int = 4,
        num_classes: int = 1000,
        class_dropout: float = 0.1,
        embed_dim: int = 384,
        depth: int = 12,
        head_dim: int = 64,
        learn_sigma: bool = True,
        skip: bool = False,
        skip_zero: bool = False,
    ) -> None:
        super().__init__()
        for option, value in (
            ("depth", depth),
            ("num_classes", num_classes),
            ("embed_dim", embed_dim),
            ("patch_size", patch_size),
        ):
            check_count(option, value)
        check_rates(class_dropout=class_dropout)
        check_flags(learn_sigma=learn_sigma, skip=skip, skip_zero=skip_zero)
        if embed_dim % 4:
            raise ConfigError(f"embed_dim must be a multiple of 4, for the positions, got {embed_dim}")
        if skip and (depth % 2 or depth < 4):
            raise ConfigError(f"skip joins the halves of an even depth of at least 4, got depth={depth}")
        if skip_zero and not skip:
            raise ConfigError("skip_zero=True says how the joints begin, and skip=False has none; set skip=True")
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.class_dropout, self.learn_sigma = class_dropout, learn_sigma
        self.out_chans = in_chans * (2 if learn_sigma else 1)
        self.grad_checkpointing, self._joined = False, skip
        self.patch_embed = PatchEmbed(img_size, patch_size, patch_size, in_chans, embed_dim)
        if any(side % patch_size for side in self.patch_embed.img_size):
            raise ConfigError(f"img_size {img_size} does not divide into patches of {patch_size}x{patch_size}")
        # Published as a parameter that is not trained, so it is one here.
        table = sincos_table(self.patch_embed.grid_size, embed_dim, self.patch_embed.proj.weight)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.t_embed = TimestepEmbed(embed_dim)
        self.y_embed = ClassEmbed(num_classes, embed_dim, class_dropout)
        # Block j joins what came of block depth - 1 - j, in the order of the block after that one.
        self.blocks = nn.ModuleList(
            DiGBlock(
                embed_dim,
                head_dim=head_dim,
                order=ORDERS[j % 4],
                joins=ORDERS[(depth - j) % 4] if skip and j > depth // 2 else None,
            )
            for j in range(depth)
        )
        self.output = ModulatedOutput(embed_dim, patch_size**2 * self.out_chans)
        self.init_weights(skip_zero)

    @torch.no_grad()
    def init_weights(self, skip_zero: bool = False) -> None:
        """Draw the published initial values of everything outside the mixers, which draw their own.

        The output and all gates begin at zero, and the convolutions pass the stream on unchanged.
        """
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.patch_embed.proj.weight.shape[0], -1))
        for weight in (self.t_embed.fc1.weight, self.t_embed.fc2.weight, self.y_embed.table.weight):
            nn.init.normal_(weight, std=0.02)
        zeros: list[Any] = [self.output.modulation, self.output.linear]
        blocks: Any = self.blocks
        for block in blocks:
            zeros.append(block.modulation)
            nn.init.xavier_uniform_(block.mlp.fc1.weight)
            nn.init.xavier_uniform_(block.mlp.fc2.weight)
            nn.init.dirac_(block.conv.weight, groups=block.conv.groups)
            if block.skip is not None and skip_zero:
                nn.init.eye_(block.skip.weight)
            elif block.skip is not None:
                nn.init.xavier_uniform_(block.skip.weight)
        for layer in zeros:
            nn.init.zeros_(layer.weight)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()

    def no_weight_decay(self) -> set[str]:
        """No names: the published recipe decays nothing."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what is inside them."""
        self.grad_checkpointing = enable

    def extra_repr(self) -> str:
        """What a printed model begins with."""
        return in_words(self)

    def call_for(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what one call takes for these images [B, in_chans, H, W] where only its cost is asked for."""
        labels = torch.zeros(images.shape[0], dtype=torch.long, device=images.device)
        return images, labels, labels

    def fit_positions(self, table: Tensor, rule: str) -> Tensor:
        """Return the position table of this model's grid, whatever the ``table`` of another one and the ``rule``.

        Positions are fixed, so those of another grid are computed, not resampled.
        """
        return self.pos_embed.detach().to(table.dtype)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, drop: Tensor | None = None) -> Tensor:
        """Tell the noise in images or latents.

        Args:
            x: noisy images or latents, [B, in_chans, H, W].
            t: timesteps, [B], whole numbers or not.
            y: labels, [B], whole numbers up to ``num_classes``, which is that of no class.
            drop: [B], which labels to take for that of no class; None draws them in training, by ``class_dropout``,
                and drops none in evaluation.

        Returns:
            [B, in_chans, H, W], the noise, or [B, 2 in_chans, H, W] with ``learn_sigma``: the variance's behind it.

        Raises:
            ShapeError: a shape does not fit, or the labels are not whole numbers up to ``num_classes``; of labels on a
                GPU, and under torch.compile and transforms, the numbers are not looked at.
        """
        self._check(x, t, y, drop)
        tokens, grid = self.patch_embed(x)
        condition = F.silu(self.t_embed(t) + self.y_embed(y, drop))
        stream = torch.unflatten(tokens + self._positions(grid), 1, grid)
        kept: list[Tensor] = []
        blocks: Any = self.blocks
        for j, block in enumerate(blocks):
            earlier = kept.pop() if block.skip is not None else None
            if self.grad_checkpointing and not transformed():
                stream = checkpoint(block, stream, condition, earlier)
            else:
                stream = block(stream, condition, earlier)
            if self._joined and j < len(blocks) // 2 - 1:
                kept.append(stream)
        return self._unpatched(self.output(stream, condition))

    def _check(self, x: Tensor, t: Tensor, y: Tensor, drop: Tensor | None) -> None:
        """Raise ShapeError for what the layers would answer less plainly, or not at all."""
        patch = self.patch_embed.patch_size[0]
        if x.dim() == 4 and (x.shape[2] % patch or x.shape[3] % patch):
            raise ShapeError(f"an image of {x.shape[2]}x{x.shape[3]} does not divide into patches of {patch}x{patch}")
        for name, given in (("t", t), ("y", y), ("drop", drop)):
            if given is not None and given.shape != x.shape[:1]:
                raise ShapeError(f"{name} must be [{x.shape[0]}], one for each image, got {list(given.shape)}")
        if y.is_floating_point() or y.dtype == torch.bool:
            raise ShapeError(f"y must be whole numbers, labels up to {self.num_classes}, got {y.dtype}")
        # Not on a GPU, which would have to be waited for, nor where the numbers are not there to be looked at.
        if type(y) is Tensor and y.is_cpu and y.numel() and not (torch.compiler.is_compiling() or transformed()):
            least, most = int(y.min()), int(y.max())
            if least < 0 or most > self.num_classes:
                raise ShapeError(
                    f"y must be from 0 to {self.num_classes}, which is that of no class, got {least} to {most}"
                )

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions [1, h*w, D] for a grid of patches."""
        if grid == self.patch_embed.grid_size:
            return self.pos_embed
        return sincos_table(grid, self.pos_embed.shape[-1], self.pos_embed)

    def _unpatched(self, x: Tensor) -> Tensor:
        """Lay the values of tokens [B, h, w, P P C] out as an image [B, C, h P, w P]."""
        patch = self.patch_embed.patch_size[0]
        pixels = torch.unflatten(x, -1, (patch, patch, self.out_chans))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
