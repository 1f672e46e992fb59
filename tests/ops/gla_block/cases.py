"""Blocks of gated linear attention for the tests of one call: random weights, and the composition to be equalled."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops import GlaBlock, NormWeights, Traversal, gla


def random_block(
    channels: int,
    heads: int = 1,
    *,
    rank: int = 5,
    hidden: int = 11,
    norm: str = "rms",
    conv_act: bool = True,
    out_act: bool = True,
) -> GlaBlock:
    generator = torch.Generator().manual_seed(channels)

    def draw(*shape: int, by: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * by).float()

    def weight(outputs: int, inputs: int) -> Tensor:
        return draw(outputs, inputs, by=inputs**-0.5)

    def norm_of(kind: str, width: int) -> NormWeights:
        return NormWeights(kind, 1e-5, 1 + 0.3 * draw(width), draw(width) if kind == "layer" else None)

    return GlaBlock(
        norm=norm_of(norm, channels),
        conv=draw(channels, 1, 3, 3, by=0.4),
        qkv_proj=weight(2 * channels, channels),
        gate_down=weight(rank, channels),
        gate_up=weight(channels, rank),
        gate_bias=draw(channels),
        g_proj=weight(channels, channels),
        g_bias=draw(channels),
        g_norm=norm_of("rms", channels // heads),
        l_norm=norm_of("rms", channels // heads),
        o_proj=weight(channels, channels),
        norm2=norm_of(norm, channels),
        fc1=weight(2 * hidden, channels),
        fc2=weight(channels, hidden),
        heads=heads,
        conv_act=conv_act,
        out_act=out_act,
        scale=0.25,
    )


def cast(block: GlaBlock, dtype: torch.dtype) -> GlaBlock:
    return block.holding([None if w is None else w.to(dtype) for w in block.tensors()])


def draw_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def composed(x: Tensor, block: GlaBlock, operand: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """The same in plain torch operations and the reference attention, in the tensors' dtype.

    ``operand`` is applied to both sides of the products.
    """

    def norm(x: Tensor, of: NormWeights) -> Tensor:
        if of.kind == "rms":
            return F.rms_norm(x, of.weight.shape, of.weight, of.eps)
        return F.layer_norm(x, of.weight.shape, of.weight, of.bias, of.eps)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return operand(x) @ operand(weight).T

    def by_head(x: Tensor, of: NormWeights) -> Tensor:
        return norm(x.unflatten(-1, (block.heads, -1)), of).flatten(-2)

    channels = x.shape[-1]
    image = norm(x, block.norm).permute(0, 3, 1, 2)
    local = F.conv2d(image, block.conv, padding=1, groups=channels).flatten(2).transpose(1, 2)
    local = F.silu(local) if block.conv_act else local
    q, k, v = product(local, block.qkv_proj).split([channels // 2, channels // 2, channels], -1)
    gates = F.logsigmoid(product(product(local, block.gate_down), block.gate_up) + block.gate_bias) / 16
    walks = [Traversal.sequence(local.shape[1]), Traversal.sequence(local.shape[1], reverse=True)]
    attended = block.scale * sum(
        gla(q, k, v, log[:, None], heads=block.heads, traversals=[walk], scale=1.0, backend="reference")
        for log, walk in zip(gates.chunk(2, -1), walks, strict=True)
    )
    gate = torch.sigmoid(product(local, block.g_proj) + block.g_bias)
    mixed = gate * by_head(attended, block.g_norm) + (1 - gate) * by_head(local, block.l_norm)
    stream = x + product(F.silu(mixed) if block.out_act else mixed, block.o_proj).view(x.shape)
    hidden, value = product(norm(stream, block.norm2), block.fc1).chunk(2, -1)
    return stream + product(F.silu(hidden) * value, block.fc2)
