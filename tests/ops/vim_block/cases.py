"""Vim blocks for the tests of one call: random weights, and the composition that the call must equal."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops import NormWeights, SsmWeights, Traversal, VimBlock, selective_scan
from vision_ssm.ops.native import instruction_set

# Per name: which way the walks go, which way the convolutions look (as in layers/mixer.py).
WAYS = {
    "bidirectional": ((False, True), (False, True)),
    "shared": ((False, True), (False,)),
    "forward": ((False,), (False,)),
    "backward": ((True,), (True,)),
}


def random_block(
    way: str,
    *,
    width: int,
    inner: int,
    states: int,
    rank: int = 5,
    taps: int = 4,
    norm: str = "rms",
    gamma: bool = False,
    scale: float = 0.5,
    seed: int = 0,
) -> VimBlock:
    generator = torch.Generator().manual_seed(seed)
    walks, looks = WAYS[way]
    K, P, R = len(walks), len(looks), rank

    def draw(*shape: int, by: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * by).float()

    ssm = SsmWeights(
        A_log=draw(K, inner, states, by=0.5),
        D=draw(P, inner),
        x_proj_weight=draw(P, R + 2 * states, inner, by=inner**-0.5),
        dt_proj_weight=draw(P, inner, R, by=R**-0.5),
        dt_proj_bias=draw(P, inner) - 2,
        conv_weight=draw(P, inner, taps, by=0.5),
        conv_bias=draw(P, inner, by=0.5),
    )
    bias = draw(width) if norm == "layer" else None
    return VimBlock(
        norm=NormWeights(norm, 1e-5, draw(width), bias),
        in_proj=draw(2 * inner, width, by=width**-0.5),
        ssm=ssm,
        out_proj=draw(width, inner, by=inner**-0.5),
        gamma=draw(width) if gamma else None,
        scale=scale,
        walks_reversed=walks,
        looks_back=looks,
    )


def tensors_of(block: VimBlock) -> list[Tensor]:
    return [w for w in block.tensors() if w is not None]


def cast(block: VimBlock, dtype: torch.dtype) -> VimBlock:
    return block.holding([None if w is None else w.to(dtype) for w in block.tensors()])


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def composed(
    x: Tensor,
    block: VimBlock,
    backend: str = "reference",
    operand: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """The same in plain torch operations and the reference scan, in the tensors' dtype.

    ``operand`` is applied to both sides of the products that may be of bfloat16.
    """
    norm, ssm = block.norm, block.ssm
    if norm.kind == "rms":
        normed = F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    else:
        normed = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    hidden, z = (operand(normed) @ operand(block.in_proj).T).chunk(2, -1)
    assert ssm.conv_weight is not None
    convolved = []
    for taps, bias, back in zip(ssm.conv_weight, ssm.conv_bias, block.looks_back, strict=True):  # type: ignore[arg-type]
        sequence = (hidden.flip(1) if back else hidden).transpose(1, 2)
        y = F.silu(F.conv1d(F.pad(sequence, (taps.shape[1] - 1, 0)), taps[:, None], bias, groups=len(bias)))
        convolved.append(y.transpose(1, 2).flip(1) if back else y.transpose(1, 2))
    u = torch.stack(convolved, 1)
    states, rank = ssm.A_log.shape[2], ssm.dt_proj_weight.shape[2]
    projected = torch.einsum("bklc,kpc->bklp", operand(u), operand(ssm.x_proj_weight))
    low, b, c = projected.split([rank, states, states], -1)
    delta = torch.einsum("bklr,kcr->bklc", low, ssm.dt_proj_weight)
    traversals = [Traversal.sequence(x.shape[1], reverse=back) for back in block.walks_reversed]
    A = -ssm.A_log.exp()
    y = selective_scan(u, delta, A, b, c, ssm.D, z, ssm.dt_proj_bias, traversals=traversals, backend=backend)
    added = block.scale * (operand(y) @ operand(block.out_proj).T)
    return x + (added if block.gamma is None else added * block.gamma)


def stream(batch: int, tokens: int, width: int) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(tokens))


def multiplies_pairs() -> bool:
    """Whether the kernel in use has products of bfloat16."""
    return instruction_set() == "avx512bf16"
