"""Vim: a plain column of bidirectional state-space blocks over patch tokens.

    T_0 = [t_1 W, ..., t_cls, ..., t_M W] + E_pos                tokens of M patches and a class token, [B, M + 1, D]
    T_l = T_(l-1) + mixer_l(Norm_l(T_(l-1)))                     l = 1..depth; layers/blocks.py
    logits = head(Norm(T_depth)[cls])

Source: Vision Mamba, arXiv:2401.09417v3, and the authors' code (hustvl/Vim at dd0358a); docs/families/vim.md lists
where this differs and which oddities are kept because trained weights depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers.weight_init import lecun_normal_
from timm.models import checkpoint, register_notrace_function, register_notrace_module
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.errors import ConfigError
from vision_ssm.layers import (
    Block,
    PatchEmbed,
    RMSNorm,
    StreamLayerNorm,
    VimMixer,
    make_norm,
    one_call,
    run_mirrored_pair,
)
from vision_ssm.layers.initial import truncated_normal_
from vision_ssm.layers.options import check_choice, check_count, check_flags, check_rates
from vision_ssm.layers.positions import (
    CLASS_TOKENS,
    class_indices,
    class_rows,
    insert_rows,
    resample_table,
)
from vision_ssm.layers.rotary import rotary_table, rotated
from vision_ssm.layers.strips import Patches
from vision_ssm.layers.untouched import built_of, untouched
from vision_ssm.models.columnar import Columnar, init_head
from vision_ssm.ops.transforms import transformed

__all__ = ["DIRECTIONS", "Vim"]

moved.answer(__name__)

DIRECTIONS = ("bidirectional", "shared", "forward", "layerwise")

# Symbolic tracing (torch.fx) sees these as one step: what they do depends on the number of tokens.
register_notrace_module(PatchEmbed)
register_notrace_module(VimMixer)
register_notrace_function(resample_table)  # type: ignore[no-untyped-call]
register_notrace_function(rotary_table)  # type: ignore[no-untyped-call]


@built_of(norm=(RMSNorm, StreamLayerNorm))
class Vim(Columnar):
    """Vim classifier and feature extractor; images [B, in_chans, H, W] of any size from one patch up.

    Args:
        img_size: nominal size, that of the position table; other sizes are padded to whole patches and get positions
            resampled at their true places, unless ``dynamic_img_size`` is False.
        patch_size: side of a patch.
        stride: pixels between patches; None for ``patch_size``.
        in_chans: image channels.
        num_classes: 0 for no head.
        global_pool: what the head reads. 'token': the class token (the mean of both with 'double'). 'avg': the mean
            of the patch tokens. 'last': the last token. 'max': the head is applied to every token and the *logits*
            are maximised over tokens, as published. '': nothing is pooled. None: 'token' if there is one, else 'avg'.
        embed_dim: D.
        depth: number of layers.
        d_state: N, states per channel.
        class_token: 'middle' (at M // 2 of M patches), 'head', 'double' (both ends) or 'none'.
        direction: 'bidirectional' (v2: "SSM + Conv1d" in the paper's table 4), 'shared' (v1: "SSM"), 'forward'
            ("none") or 'layerwise' ("Layer": every second layer walks backwards).
        norm_layer: 'rms' or 'layer'.
        layer_scale: initial value of a learned factor on every mixer output, or None.
        halve_output: average the two directions of 'bidirectional' instead of adding them.
        backward_step: 'published' or 'fixed' initial step bias of the backward direction, see VimMixer.
        drop_rate: dropout after the position embedding, as published.
        drop_path_rate: p; the mixer output of block j is dropped with probability p * j / (depth - 1).
        dynamic_img_size: accept other sizes than ``img_size``.
        rotary: turn the stream by the tokens' places before every block (layers/rotary.py), as the published detectors
            do; only without a class token.

    Raises:
        ConfigError: a value is unknown or out of range, or two options contradict each other.
    """

    patch_embed: PatchEmbed

    def __init__(  # noqa: PLR0913 -- timm passes every option by name; each is described above
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        class_token: str = "middle",
        direction: str = "bidirectional",
        norm_layer: str = "rms",
        layer_scale: float | None = None,
        halve_output: bool = True,
        backward_step: str = "published",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        check_choice("class_token", class_token, CLASS_TOKENS)
        check_choice("direction", direction, DIRECTIONS)
        for option, value, least in (("embed_dim", embed_dim, 1), ("depth", depth, 1), ("num_classes", num_classes, 0)):
            check_count(option, value, least)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_flags(halve_output=halve_output, dynamic_img_size=dynamic_img_size, rotary=rotary)
        if rotary and (class_token != "none" or embed_dim % 4):
            raise ConfigError(
                f"rotary=True turns patches in groups of four channels: it needs class_token='none' and an embed_dim "
                f"that 4 divides, got class_token={class_token!r} and embed_dim={embed_dim}"
            )
        if direction == "layerwise" and depth % 2:
            raise ConfigError(f"direction='layerwise' pairs the layers, so depth must be even, got {depth}")
        self.class_token, self.direction = class_token, direction
        self.num_prefix_tokens = CLASS_TOKENS[class_token]
        self.has_class_token = self.num_prefix_tokens > 0
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.global_pool = self._checked_pool(global_pool)
        self.grad_checkpointing = False
        self.dynamic_img_size, self.rotary = dynamic_img_size, rotary

        self.patch_embed = PatchEmbed(
            img_size, patch_size, stride or patch_size, in_chans, embed_dim, strict=not dynamic_img_size
        )
        if class_token == "double":
            self.cls_token_head = nn.Parameter(torch.empty(1, 1, embed_dim))
            self.cls_token_tail = nn.Parameter(torch.empty(1, 1, embed_dim))
        elif class_token != "none":
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches + self.num_prefix_tokens, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        # Plain numbers, so that building on the meta device works.
        rates = [drop_path_rate * j / max(depth - 1, 1) for j in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                make_norm(norm_layer, embed_dim),
                VimMixer(
                    embed_dim,
                    states=d_state,
                    direction=("forward", "backward")[j % 2] if direction == "layerwise" else direction,
                    halve=halve_output,
                    layer_scale=layer_scale,
                    backward_step=backward_step,
                    depth=depth,
                ),
                rates[j],
            )
            for j in range(depth)
        )
        self.column = one_call.Column()
        self.norm = make_norm(norm_layer, embed_dim)
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": self.patch_embed.stride, "module": f"blocks.{j}"}
            for j in range(self._layers_per_step - 1, depth, self._layers_per_step)
        ]
        self.init_weights()

    # ------------------------------------------------------------------------------------------------ parameters

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the published initial values of everything outside the mixers, which draw their own."""
        lecun_normal_(self.patch_embed.proj.weight)  # type: ignore[no-untyped-call]
        if self.patch_embed.proj.bias is not None:
            self.patch_embed.proj.bias.zero_()
        for name, parameter in self.named_parameters(recurse=False):
            if name == "pos_embed" or name.startswith("cls_token"):
                truncated_normal_(parameter)
        init_head(self.head)

    def no_weight_decay(self) -> set[str]:
        """Names that get no weight decay although they are not one-dimensional, as published.

        Stacking made the skips and biases of the directions two-dimensional; they are biases all the same. A_log does
        decay: the published code marks it otherwise, but its optimiser never reads the mark.
        """
        stacked = (".ssm.D", ".ssm.dt_proj_bias", ".conv_bias")
        names = {name for name, _ in self.named_parameters() if name.endswith(stacked)}
        return names | {name for name, _ in self.named_parameters(recurse=False)}

    # --------------------------------------------------------------------------------------------------- forward

    def forward(self, x: Tensor | Patches) -> Tensor:
        """Classify images [B, in_chans, H, W], or what :meth:`embed_strips` returned; logits [B, num_classes]."""
        if self.global_pool == "token" and untouched(self, inside=True):
            # The norm takes each token by itself, so that the others need not be normalised, nor put in order.
            return self.forward_head(self._normalised_class_rows(*self._embed(x)))
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor | Patches) -> Tensor:
        """Return the normalised tokens [B, T + M, D], class tokens first, then the patches row by row."""
        return self._prefix_first(self.norm(self._after_blocks(*self._embed(x))))

    # -------------------------------------------------------------------------------------------------- internals

    @property
    def _layers_per_step(self) -> int:
        return 2 if self.direction == "layerwise" else 1

    def _segments(self, tokens: Tensor, norm: nn.Module | None = None) -> Callable[..., Tensor] | None:
        """See :meth:`vision_ssm.layers.one_call.Column.segments`; None where blocks have to be called one by one."""
        in_order = self._layers_per_step == 1 and not self.grad_checkpointing
        return self.column.segments(self.blocks, tokens, norm) if in_order else None

    def _runner(self, tokens: Tensor, grid: tuple[int, int]) -> Callable[[Tensor, int, int], Tensor]:
        if self.rotary:
            return partial(self._step_by_step, table=rotary_table(grid, self.embed_dim, tokens))
        return self._segments(tokens) or self._step_by_step

    def _step_by_step(
        self, tokens: Tensor, start: int, stop: int, table: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        for step in list(self._steps())[start:stop]:
            # The published code turns hidden and residual, the sum of which is the stream: the same, for it is linear.
            x = tokens if table is None else rotated(tokens, table)
            tokens = checkpoint(step, x) if self.grad_checkpointing and not transformed() else step(x)
        return tokens

    def _steps(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """What transforms the stream in turn: the blocks, or their mirrored pairs."""
        if self.direction != "layerwise":
            yield from self.blocks
            return
        layers: Any = self.blocks
        for there, back in zip(layers[::2], layers[1::2], strict=True):
            yield partial(run_mirrored_pair, there, back)

    def _after_blocks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The stream [B, M + T, D] after the last block."""
        return self._runner(tokens, grid)(tokens, 0, len(self.blocks) // self._layers_per_step)

    def _normalised_class_rows(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The class tokens [B, T, D] after the last block and the norm."""
        norm: Any = self.norm
        run = self._segments(tokens, self.norm)
        if run is None:
            normalised: Tensor = self.norm(class_rows(self._after_blocks(tokens, grid), self.class_token))
            return normalised
        places = class_indices(self.class_token, tokens.shape[1] - self.num_prefix_tokens)
        return run(tokens, 0, len(self.blocks), places).to(norm.weight.dtype)

    def _embed(self, x: Tensor | Patches) -> tuple[Tensor, tuple[int, int]]:
        """Images or patches to the residual stream [B, M + T, D], at least float32, and the patch grid."""
        whole = one_call.embed(self, x)
        if whole is not None:
            return whole
        patches, grid = x if isinstance(x, Patches) else self.patch_embed(x)
        rows = self._class_rows()
        if rows is not None:
            rows = rows.to(patches.dtype).expand(patches.shape[0], -1, -1)
        tokens = insert_rows(patches, rows, self.class_token)
        wide = torch.promote_types(self.pos_embed.dtype, torch.float32)
        return self.pos_drop(tokens.to(wide) + self._positions(grid)), grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions [1, M + T, D] for a grid of patches."""
        # Here, not in the base class: symbolic tracing takes functions as one step in the file of forward only.
        return resample_table(
            self.pos_embed,
            self.class_token,
            self.patch_embed.grid_size,
            grid,
            self.patch_embed.patch_size[0],
            self.patch_embed.stride,
        )

    def _class_rows(self) -> Tensor | None:
        """The class tokens [1, T, D], or None."""
        if self.class_token == "none":
            return None
        double = self.class_token == "double"
        return torch.cat([self.cls_token_head, self.cls_token_tail], dim=1) if double else self.cls_token
