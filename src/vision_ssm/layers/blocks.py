"""Vim's residual block.

    T_l = T_(l-1) + mixer(Norm(T_(l-1)))                         T [B, L, D], the residual stream

The mixer is layers/mixer.py. Source: Vim, arXiv:2401.09417, Alg. 1 and eq. 3.
"""

from __future__ import annotations

from timm.layers.drop import DropPath
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.layers import one_call
from vision_ssm.layers.mixer import VimMixer
from vision_ssm.layers.norms import RMSNorm, StreamLayerNorm
from vision_ssm.layers.untouched import built_of

__all__ = ["Block", "run_mirrored_pair"]

moved.answer(__name__)


@built_of(norm=(RMSNorm, StreamLayerNorm), mixer=VimMixer, drop_path=(nn.Identity, DropPath))
class Block(nn.Module):
    """x + DropPath(mixer(norm(x))).

    The published code carries (hidden, residual) from block to block and drops the incoming hidden; adding at the end
    of the block that made it is the same function, with the drop rate moved to that block.

    Args:
        norm: pre-normalisation.
        mixer: maps [B, L, D] to [B, L, D].
        drop_path: probability of dropping the mixer's output, per image.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on the stream x [B, L, D]."""
        whole = one_call.vim_block(self, x)
        return x + self.branch(x) if whole is None else whole

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to x [B, L, D]."""
        added: Tensor = self.drop_path(self.mixer(self.norm(x)))
        return added


def run_mirrored_pair(forward: Block, backward: Block, x: Tensor) -> Tensor:
    """Run two blocks side by side, the second one's mixer walking the sequence from its end.

    The published code reverses the second layer's input and output and adds both (hidden, residual) pairs, so the
    stream itself doubles with every pair: 2x + forward(x) + backward(x). Kept, for it is part of the function.
    Source: the "Bidirectional Layer" row of Vim's table 4.
    """
    return 2 * x + forward.branch(x) + backward.branch(x)
