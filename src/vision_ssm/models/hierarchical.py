"""What all four-stage families share: maps at growing strides, and every door that timm expects of such a backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.layers.classifier import ClassifierHead
from timm.models import checkpoint, register_notrace_function, register_notrace_module
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.downsample import ConvDownsample, PatchMerging
from vision_ssm.layers.initial import truncated_normal_
from vision_ssm.layers.options import check_choice, check_count, check_flags, check_rates
from vision_ssm.layers.patch_embed import as_size
from vision_ssm.layers.stem import PatchStem
from vision_ssm.layers.strips import Patches
from vision_ssm.models.in_words import in_words
from vision_ssm.ops.transforms import transformed

__all__ = ["POOLS", "Hierarchical", "Stage", "check_depths", "drop_path_rates"]

POOLS = ("avg", "max", "avgmax", "catavgmax")
EPS = 1e-5


class Stage(nn.Module):
    """Blocks of one resolution, behind the layer that leads to that resolution.

    The published layouts keep the downsampling at the end of the stage before. Here it opens its own stage, so that
    what ``stages.i`` returns is what feature extractors want: the map before any further downsampling.

    Args:
        blocks: each maps [B, H, W, C] to the same shape.
        downsample: maps the previous stage's [B, H, W, C'] to [B, h, w, C]; None for the first stage.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage on a map [B, H, W, C']."""
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing and not transformed() else block(x)
        return x


class Hierarchical(nn.Module):
    """A stem, stages of halving resolution and doubling width, a final norm, pooling and a linear head.

    Maps stay channel-last, [B, H, W, C], from the stem to the pooling. A family builds its stem and stages, calls this
    constructor with them, and draws its initial values with :meth:`init_weights`.

    Args:
        stem: maps images [B, in_chans, H, W] to [B, h, w, widths[0]]; sees images of at least one pixel.
        stages: one per entry of ``widths``; every one but the first halves the resolution, rounding up.
        widths: channels of each stage.
        stem_stride: pixels per position of the first stage's maps.
        img_size: nominal size; every size is accepted at run time.
        in_chans: image channels.
        num_classes: 0 for no head.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
        drop_rate: dropout before the classifier.
        stage_norms: give every stage a LayerNorm of its own that is applied to the feature maps (and to nothing
            else): the published backbone for dense tasks.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    not_in_classifiers = ("stage_norms.",)  # parameters that a published classifier's file cannot hold
    output_fmt = "NHWC"

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Stage],
        widths: Sequence[int],
        stem_stride: int,
        img_size: int | Sequence[int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        stage_norms: bool,
    ) -> None:
        super().__init__()
        check_choice("global_pool", global_pool, (*POOLS, ""))
        check_rates(drop_rate=drop_rate)
        check_flags(stage_norms=stage_norms)
        check_count("num_classes", num_classes, 0)
        check_count("in_chans", in_chans)
        self.img_size = as_size("img_size", img_size)
        self.in_chans, self.num_classes, self.stem_stride = in_chans, num_classes, stem_stride
        self.num_features = self.head_hidden_size = widths[-1]
        self.patch_embed = stem
        self.stages = nn.ModuleList(stages)
        self.stage_norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for width in widths) if stage_norms else None
        self.norm: nn.Module = nn.LayerNorm(widths[-1], eps=EPS)
        self.head = ClassifierHead(widths[-1], num_classes, global_pool, drop_rate, input_fmt="NHWC")
        self.feature_info = [
            {"num_chs": width, "reduction": stem_stride * 2**i, "module": f"stages.{i}"}
            for i, width in enumerate(widths)
        ]

    # ------------------------------------------------------------------------------------------------ parameters

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw every linear layer as published (normal, standard deviation 0.02; biases 0); the rest draws its own."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module)

    def no_weight_decay(self) -> set[str]:
        """Names that get no weight decay although they are not one-dimensional, as published.

        The published skip D is one-dimensional and exempt; stacking made it two-dimensional here. A_log and the stacked
        step biases decay: the published code's rule (one-dimensional, or a name ending in '.bias') misses them.
        """
        return {name for name, _ in self.named_parameters() if name.endswith(".ssm.D") or name == "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        last = (r"^(?:norm|stage_norms)\b", (99999,))
        within = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {
            "stem": r"^(?:patch_embed|pos_embed)\b",
            "blocks": [(r"^stages\.(\d+)", None), last] if coarse else [*within, last],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what is inside them.

        Batch norms inside the blocks then see every batch twice, so their running statistics move faster; the
        gradients are the same. ``torch.func`` keeps everything all the same: it does not go together with recomputing.
        """
        stages: Any = self.stages
        for stage in stages:
            stage.grad_checkpointing = enable

    def extra_repr(self) -> str:
        """What a printed model begins with."""
        return in_words(self)

    def get_classifier(self) -> nn.Module:
        """Return the linear head."""
        head: nn.Module = self.head.fc
        return head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head, and the pooling if one is named ('' for none)."""
        check_count("num_classes", num_classes, 0)
        if global_pool is not None:
            check_choice("global_pool", global_pool, (*POOLS, ""))
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        if isinstance(self.head.fc, nn.Linear):
            _init_linear(self.head.fc)

    def set_input_size(self, img_size: int | Sequence[int] | None = None) -> None:
        """Change the nominal image size; nothing but a position table depends on it."""
        if img_size is not None:
            self.img_size = as_size("img_size", img_size)
            update_model_input_size(self, self.img_size)

    # --------------------------------------------------------------------------------------------------- forward

    def forward(self, x: Tensor | Patches) -> Tensor:
        """Classify images [B, in_chans, H, W], or what :meth:`embed_strips` returned; logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor | Patches) -> Tensor:
        """Return the last stage's normalised map [B, h, w, C]."""
        x = self.embed(x)
        for stage in self.stages:
            x = stage(x)
        normalised: Tensor = self.norm(x)
        return normalised

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what :meth:`forward_features` returned; ``pre_logits`` stops at the pooled features."""
        result: Tensor = self.head(x, pre_logits=pre_logits)
        return result

    def forward_intermediates(
        self,
        x: Tensor | Patches,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the final map and the maps of chosen stages, each before any further downsampling.

        Args:
            x: images [B, in_chans, H, W], or patches.
            indices: the last n stages if a number, all if None, else those.
            norm: apply the final norm to the last stage's map. With ``stage_norms`` every map has its own norm
                applied, whatever this says.
            stop_early: do not run the stages after the last chosen one.
            output_fmt: 'NCHW' for maps [B, C, h, w] (views of channel-last memory), 'NHWC' for [B, h, w, C].
            intermediates_only: leave the final map out.

        Returns:
            (map as :meth:`forward_features`, list), or the list. If ``stop_early`` stopped before the last stage, the
            first is the last map computed, not normalised.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt must be NCHW or NHWC, got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.stages), indices)
        final = len(self.stages) - 1
        x = self.embed(x)
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i == final and not intermediates_only:
                normalised = self.norm(x)
            if i not in taken:
                continue
            if self.stage_norms is not None:
                tap = self.stage_norms[i](x)
            elif norm and i == final:
                tap = self.norm(x)
            else:
                tap = x
            maps.append(tap.permute(0, 3, 1, 2) if output_fmt == "NCHW" else tap)
        if intermediates_only:
            return maps
        return (x if stop_early and last < final else normalised), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that the chosen maps do not need, and the norm and head if asked to or cut off from them."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if self.stage_norms is not None:
            kept = (norm if i in taken else nn.Identity() for i, norm in enumerate(self.stage_norms))
            self.stage_norms = nn.ModuleList(list(kept)[: last + 1])
        if shortened:
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return list(taken)

    def embed(self, x: Tensor | Patches) -> Tensor:
        """Check images [B, in_chans, H, W] and return the first stage's input [B, h, w, C]; or lay out patches so."""
        if isinstance(x, Patches):
            return x.tokens.reshape(x.tokens.shape[0], *x.grid, -1)
        embedded: Tensor = self.patch_embed(checked_images(x, self.in_chans))
        return embedded

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips [B, in_chans, r, W], top to bottom; ``size`` is the whole (H, W).

        All forward methods take the result in the place of the images.

        Raises:
            ShapeError: the strips are not of that size.
        """
        stem: Any = self.patch_embed
        patches: Patches = stem.embed_strips(strips, size)
        return patches


def checked_images(x: Tensor, in_chans: int) -> Tensor:
    """Return x if it is [B, in_chans, H, W] with at least one pixel; else raise ShapeError."""
    if x.dim() != 4 or x.shape[1] != in_chans or min(x.shape[2:]) < 1:
        raise ShapeError(f"expected images [B, {in_chans}, H, W] of at least one pixel, got {list(x.shape)}")
    return x


# Symbolic tracing (torch.fx) sees each of these as one step: they look at the shape.
register_notrace_function(checked_images)  # type: ignore[no-untyped-call]
register_notrace_module(PatchStem)
register_notrace_module(PatchMerging)
register_notrace_module(ConvDownsample)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates growing linearly from 0 to ``rate`` over all blocks, per stage; plain numbers, for the meta device."""
    total = sum(depths)
    rates = [rate * j / max(total - 1, 1) for j in range(total)]
    ends = [sum(depths[: i + 1]) for i in range(len(depths))]
    return [rates[end - depth : end] for depth, end in zip(depths, ends, strict=True)]


def check_depths(depths: Sequence[int], embed_dim: int) -> None:
    """Raise ConfigError unless there are four positive depths and a positive width."""
    if not isinstance(depths, Sequence) or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in depths):
        raise ConfigError(f"depths must be positive whole numbers, got {depths!r}")
    if len(depths) != 4:
        raise ConfigError(f"depths needs one number for each of the four stages, got {depths!r}")
    check_count("embed_dim", embed_dim)


@torch.no_grad()
def _init_linear(module: nn.Linear) -> None:
    truncated_normal_(module.weight)
    if module.bias is not None:
        module.bias.zero_()
