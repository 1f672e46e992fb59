"""Vim blocks for the tests of one call: random weights, and the composition that the call must equal."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops import BranchWeights, NormWeights, SsmWeights, Traversal, selective_scan
from vision_ssm.ops.native import instruction_set

# Per name: which way the walks go, which way the convolutions look (as in layers/mixer.py).
WAYS = {
    "bidirectional": ((False, True), (False, True)),
    "shared": ((False, True), (False,)),
    "forward": ((False,), (False,)),
    "backward": ((True,), (True,)),
}


def random_weights(
    way: str,
    *,
    width: int,
    inner: int,
    states: int,
    rank: int = 5,
    taps: int = 4,
    norm: str = "rms",
    gamma: bool = False,
    seed: int = 0,
) -> BranchWeights:
    generator = torch.Generator().manual_seed(seed)
    walks, looks = WAYS[way]
    K, P, R = len(walks), len(looks), rank

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).float()

    ssm = SsmWeights(
        A_log=draw(K, inner, states, scale=0.5),
        D=draw(P, inner),
        x_proj_weight=draw(P, R + 2 * states, inner, scale=inner**-0.5),
        dt_proj_weight=draw(P, inner, R, scale=R**-0.5),
        dt_proj_bias=draw(P, inner) - 2,
        conv_weight=draw(P, inner, taps, scale=0.5),
        conv_bias=draw(P, inner, scale=0.5),
    )
    bias = draw(width) if norm == "layer" else None
    return BranchWeights(
        NormWeights(norm, 1e-5, draw(width), bias),
        draw(2 * inner, width, scale=width**-0.5),
        ssm,
        draw(width, inner, scale=inner**-0.5),
        draw(width) if gamma else None,
    )


def tensors_of(weights: BranchWeights) -> list[Tensor]:
    parts = (weights.norm.weight, weights.norm.bias, weights.in_proj, *weights.ssm, weights.out_proj, weights.gamma)
    return [w for w in parts if w is not None]


def cast(weights: BranchWeights, dtype: torch.dtype) -> BranchWeights:
    norm = weights.norm
    return BranchWeights(
        NormWeights(norm.kind, norm.eps, norm.weight.to(dtype), None if norm.bias is None else norm.bias.to(dtype)),
        weights.in_proj.to(dtype),
        SsmWeights(*(x.to(dtype) for x in weights.ssm if x is not None)),
        weights.out_proj.to(dtype),
        None if weights.gamma is None else weights.gamma.to(dtype),
    )


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def composed(
    x: Tensor,
    weights: BranchWeights,
    scale: float,
    way: str,
    backend: str = "reference",
    operand: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """The same in plain torch operations and the reference scan, in the tensors' dtype.

    ``operand`` is applied to both sides of the products that may be of bfloat16.
    """
    walks, looks = WAYS[way]
    norm, ssm = weights.norm, weights.ssm
    if norm.kind == "rms":
        normed = F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    else:
        normed = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    hidden, z = (operand(normed) @ operand(weights.in_proj).T).chunk(2, -1)
    assert ssm.conv_weight is not None
    convolved = []
    for taps, bias, back in zip(ssm.conv_weight, ssm.conv_bias, looks, strict=True):  # type: ignore[arg-type]
        sequence = (hidden.flip(1) if back else hidden).transpose(1, 2)
        y = F.silu(F.conv1d(F.pad(sequence, (taps.shape[1] - 1, 0)), taps[:, None], bias, groups=len(bias)))
        convolved.append(y.transpose(1, 2).flip(1) if back else y.transpose(1, 2))
    u = torch.stack(convolved, 1)
    states, rank = ssm.A_log.shape[2], ssm.dt_proj_weight.shape[2]
    projected = torch.einsum("bklc,kpc->bklp", operand(u), operand(ssm.x_proj_weight))
    low, b, c = projected.split([rank, states, states], -1)
    delta = torch.einsum("bklr,kcr->bklc", low, ssm.dt_proj_weight)
    traversals = [Traversal.sequence(x.shape[1], reverse=back) for back in walks]
    A = -ssm.A_log.exp()
    y = selective_scan(u, delta, A, b, c, ssm.D, z, ssm.dt_proj_bias, traversals=traversals, backend=backend)
    added = scale * (operand(y) @ operand(weights.out_proj).T)
    return x + (added if weights.gamma is None else added * weights.gamma)


def stream(batch: int, tokens: int, width: int) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(tokens))


def multiplies_pairs() -> bool:
    """Whether the kernel in use has products of bfloat16."""
    return instruction_set() == "avx512bf16"
