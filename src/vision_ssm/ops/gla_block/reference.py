"""The definition of correct: norms, products and gated linear attention, one after the other.

The attention runs on its own backend; with VISION_SSM_BACKEND=reference all of it is plain torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.add_norm.reference import norm
from vision_ssm.ops.gla.op import gla
from vision_ssm.ops.gla_block.contract import GlaBlock
from vision_ssm.ops.traversal import Traversal

__all__ = ["forward"]


def forward(x: Tensor, block: GlaBlock) -> Tensor:
    """Return [B, H, W, C] for a map x [B, H, W, C]; differentiable as torch's operations are."""
    channels = x.shape[-1]
    image = norm(x, block.norm).permute(0, 3, 1, 2)
    local = F.conv2d(image, block.conv, padding=1, groups=channels).permute(0, 2, 3, 1).flatten(1, 2)
    local = F.silu(local) if block.conv_act else local
    q, k, v = torch.split(F.linear(local, block.qkv_proj), [channels // 2, channels // 2, channels], dim=-1)
    logits = F.linear(F.linear(local, block.gate_down), block.gate_up, block.gate_bias)
    log_gates = F.logsigmoid(logits.to(torch.promote_types(x.dtype, torch.float32))) / 16
    attended = gla(
        q,
        k,
        v,
        torch.unflatten(log_gates, -1, (2, -1)).movedim(2, 1),
        heads=block.heads,
        traversals=[Traversal.sequence(q.shape[1], reverse=reverse) for reverse in (False, True)],
        scale=block.scale,
    )
    by_head = (block.heads, -1)
    attended = norm(torch.unflatten(attended, -1, by_head), block.g_norm).flatten(-2)
    beside = norm(torch.unflatten(local, -1, by_head), block.l_norm).flatten(-2)
    gate = torch.sigmoid(F.linear(local, block.g_proj, block.g_bias))
    mixed = gate * attended + (1 - gate) * beside
    stream = x + F.linear(F.silu(mixed) if block.out_act else mixed, block.o_proj).view(x.shape)
    first, second = F.linear(norm(stream, block.norm2), block.fc1).chunk(2, -1)
    return stream + F.linear(F.silu(first) * second, block.fc2)
