"""The definition of correct: norm, products and SSM, one after the other.

The SSM runs on its own backend; with VISION_SSM_BACKEND=reference all of it is plain torch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.add_norm.reference import norm
from vision_ssm.ops.ssm.op import selective_ssm
from vision_ssm.ops.traversal import Traversal
from vision_ssm.ops.vim_block.contract import VimBlock

__all__ = ["forward"]


def forward(stream: Tensor, block: VimBlock) -> Tensor:
    """Return [B, L, D] for a stream [B, L, D]; differentiable as torch's operations are."""
    x, z = F.linear(norm(stream, block.norm), block.in_proj).chunk(2, -1)
    walks = [Traversal.sequence(stream.shape[1], reverse=back) for back in block.walks_reversed]
    y = selective_ssm(x, z, *block.ssm, traversals=walks, reverse=block.looks_back)
    added = block.scale * F.linear(y, block.out_proj)
    return stream + (added if block.gamma is None else added * block.gamma)
