"""Modules in the terms of the operators that do the work of several of them in one call, and those calls.

Each returns None, or calls the modules itself, where somebody has changed or watches one of them
(:func:`vision_ssm.layers.untouched.untouched`), and where the operator does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm import ops
from vision_ssm.layers.norms import RMSNorm, StreamLayerNorm
from vision_ssm.layers.positions import class_indices
from vision_ssm.layers.untouched import Unchanged, untouched

__all__ = ["Column", "GlaColumn", "add_and_norm", "convolve", "embed", "gla_block", "halves", "mlp_branch", "vim_block"]

KINDS = {RMSNorm: "rms", StreamLayerNorm: "layer", nn.LayerNorm: "layer"}


def vim_block(block: Any, x: Tensor) -> Tensor | None:
    """Return what a block with a Vim mixer makes of the stream x [B, L, D]."""
    described = _described(block, inside=True) if type(x) is Tensor and x.is_cpu else None
    return ops.vim_block(x, described) if described is not None and ops.vim_block_applies(x, described) else None


def gla_block(block: Any, x: Tensor) -> Tensor | None:
    """Return what a block with ViG's mixer and a gated MLP makes of a map x [B, H, W, C]."""
    described = _described_gla(block, x.dtype, inside=True) if type(x) is Tensor and x.is_cpu else None
    return ops.gla_block(x, described) if described is not None and ops.gla_block_applies(x, described) else None


class _Remembering:
    """Blocks described once, for as long as nobody changes one. Copies and pickles are empty."""

    _known: tuple[nn.ModuleList, Unchanged, Any] | None = None

    def _described(self, blocks: nn.ModuleList, describe: Callable[[Any], Any], together: Callable[[Any], Any]) -> Any:
        """Return ``together`` of what ``describe`` makes of each block, or None if it makes nothing of one."""
        if self._known is None or self._known[0] is not blocks or not self._known[1].holds():
            described = [whole for block in blocks if (whole := describe(block)) is not None]
            known = len(described) == len(blocks)
            self._known = (blocks, Unchanged(blocks), together(described)) if known else None
        return None if self._known is None else self._known[2]

    def __reduce__(self) -> tuple[type[_Remembering], tuple[()]]:
        return type(self), ()


class Column(_Remembering):
    """Vim's blocks one after the other."""

    def segments(self, blocks: nn.ModuleList, x: Tensor, norm: nn.Module | None = None) -> Callable[..., Tensor] | None:
        """Return a function of (stream, start, stop): a stream like x [B, L, D] after blocks[start:stop].

        With a ``norm`` it takes rows as well, and returns these of the stream, normalised: [B, rows, D].
        """
        if norm is None and ops.add_norm_applies(x) and all(map(untouched, blocks)):
            return partial(_joined, blocks)
        if type(x) is not Tensor or not x.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        known = self._described(blocks, _described, ops.VimColumn)
        weights = _norm(norm) if norm is not None and untouched(norm) else None
        return None if known is None or (norm and not weights) else known.segments(x, weights)


class GlaColumn(_Remembering):
    """ViG's blocks one after the other."""

    def segments(self, blocks: nn.ModuleList, x: Tensor) -> Callable[..., Tensor] | None:
        """Return a function of (map, start, stop): a map like x [B, H, W, C] after blocks[start:stop]."""
        if type(x) is not Tensor or not x.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        known = self._described(blocks, partial(_described_gla, dtype=x.dtype), partial(ops.GlaColumn, dtype=x.dtype))
        return None if known is None else known.segments(x)


def embed(model: Any, x: Any) -> tuple[Tensor, tuple[int, int]] | None:
    """Return the stream [B, L, D] that a Vim's first layers make of images x [B, C, H, W], and the grid of patches."""
    parts: Any = model.patch_embed
    if type(x) is not Tensor or not x.is_cpu or not untouched(parts, model.pos_drop):
        return None
    proj = parts.proj
    form = (proj.kernel_size, proj.stride, proj.padding, proj.dilation, proj.groups, proj.padding_mode)
    if form != (parts.patch_size, (parts.stride,) * 2, (0, 0), (1, 1), 1, "zeros") or not _drops_nothing(
        model.pos_drop
    ):
        return None
    grid = parts.grid_of(x)
    places = class_indices(model.class_token, grid[0] * grid[1])
    given = (x, proj.weight, proj.bias, model._positions(grid), model._class_rows(), places)
    applies = ops.embed_patches_applies(*given, stride=parts.stride)
    return (ops.embed_patches(*given, stride=parts.stride), grid) if applies else None


def mlp_branch(block: Any, x: Tensor, added: Tensor) -> Tensor | None:
    """Return s + mlp(norm2(s)), s = x + added [..., C], of a block with both."""
    mlp, drop = block.mlp, block.drop_path
    if type(x) is not Tensor or not x.is_cpu or not untouched(mlp, block.norm2, drop):
        return None
    norm = _norm(block.norm2)
    if norm is None or not _drops_nothing(drop, mlp.drop1, mlp.drop2) or mlp.act.approximate != "none":
        return None
    weights = ops.MlpWeights(norm, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    return ops.mlp_branch(x, added, weights) if ops.mlp_branch_applies(x, added, weights) else None


def halves(linear: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    """Return linear(x) in two halves of its last axis; from two products, so that each is a whole map."""
    if linear.bias is not None or not untouched(linear):
        return linear(x).chunk(2, -1)  # type: ignore[no-any-return]
    return tuple(F.linear(x, weight) for weight in linear.weight.chunk(2))


def convolve(conv: Any, x: Tensor) -> Tensor:
    """Return conv(x) of images [B, C, H, W]; of small ones on the CPU, from one product of their neighbourhoods.

    In every call oneDNN rearranges the weights, which takes longer there.
    """
    plain = untouched(conv) and conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    if not plain or x.device.type != "cpu" or x.numel() >= conv.weight.numel():
        return conv(x)  # type: ignore[no-any-return]
    form = (conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in zip(x.shape[2:], *form, strict=True)]
    product = F.linear(F.unfold(x, *form).transpose(1, 2), conv.weight.flatten(1), conv.bias)
    return product.transpose(1, 2).view(x.shape[0], conv.weight.shape[0], *size)


def add_and_norm(norm: nn.Module, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x + added, norm(x + added)), x and added [..., C]; in one pass over the stream where that applies."""
    of = _norm(norm) if ops.add_norm_applies(x, added) and untouched(norm) else None
    ruled = type(norm) is nn.LayerNorm and of and of.weight.dtype != torch.promote_types(x.dtype, added.dtype)
    if of is None or ruled or not ops.add_norm_applies(x, added, of.weight, of.bias):  # torch has rules of its own
        x = x + added
        return x, norm(x)
    return ops.add_norm(x, added, of.weight, of.bias, of.eps, of.kind)


def _joined(blocks: Any, x: Tensor, start: int, stop: int) -> Tensor:
    """Run blocks[start:stop] on the stream x [B, L, D], each addition joined to the next block's norm."""
    added: Tensor | None = None
    for block in blocks[start:stop]:
        x, normalised = (x, block.norm(x)) if added is None else add_and_norm(block.norm, x, added)
        added = block.drop_path(block.mixer(normalised))
    return x if added is None else x + added


def _described(block: Any, *, inside: bool = False) -> ops.VimBlock | None:
    mixer, norm = block.mixer, _norm(block.norm) if untouched(block, inside=inside) else None
    if norm is None or mixer.in_proj.bias is not None or mixer.out_proj.bias is not None:
        return None
    if not _drops_nothing(block.drop_path):
        return None
    ssm = ops.SsmWeights(*mixer.ssm.weights())._replace(conv_weight=mixer.conv_weight, conv_bias=mixer.conv_bias)
    form = (0.5 if mixer.halve else 1.0, mixer.walks_reversed, mixer.convolutions_reversed)
    return ops.VimBlock(norm, mixer.in_proj.weight, ssm, mixer.out_proj.weight, mixer.gamma, *form)


def _described_gla(block: Any, dtype: torch.dtype, *, inside: bool = False) -> ops.GlaBlock | None:
    """Describe a block for streams of a dtype."""
    if not untouched(block, inside=inside) or not _drops_nothing(block.drop_path):
        return None
    mixer, mlp, conv = block.mixer, block.mlp, block.mixer.conv
    norms: list[Any] = [_norm(norm) for norm in (block.norm, block.norm2, mixer.g_norm, mixer.l_norm)]
    plain = (conv, mixer.qkv_proj, mixer.gate_down, mixer.o_proj, mlp.fc1, mlp.fc2)
    biased = any(layer.bias is not None for layer in plain)
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    depthwise = form == ((3, 3), (1, 1), (1, 1), (1, 1), conv.out_channels, "zeros")
    # torch's own LayerNorm takes weights of the stream's dtype alone.
    ruled = any(type(norm) is nn.LayerNorm and norm.weight.dtype != dtype for norm in (block.norm, block.norm2))
    if None in norms or biased or not depthwise or ruled:
        return None
    up, gate = mixer.gate_up, mixer.g_proj
    return ops.GlaBlock(
        *(norms[0], conv.weight, mixer.qkv_proj.weight, mixer.gate_down.weight, up.weight, up.bias),
        *(gate.weight, gate.bias, norms[2], norms[3], mixer.o_proj.weight, norms[1], mlp.fc1.weight, mlp.fc2.weight),
        *(mixer.heads, mixer.conv_act, mixer.out_act, mixer.scale),
    )


def _norm(norm: Any) -> ops.NormWeights | None:
    known = type(norm) in KINDS and norm.weight is not None and isinstance(norm.eps, float)
    return ops.NormWeights(KINDS[type(norm)], norm.eps, norm.weight, getattr(norm, "bias", None)) if known else None


def _drops_nothing(*drops: nn.Module) -> bool:
    rates = (getattr(drop, "p", getattr(drop, "drop_prob", 0)) if drop.training else 0 for drop in drops)
    return not any(rates)
