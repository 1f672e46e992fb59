"""Residual blocks over a token stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.layers.drop import DropPath
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.layers.norms import add_and_norm
from vision_ssm.layers.options import drops_nothing, has_global_hooks, is_plain
from vision_ssm.ops import Branch, fuses_norms, try_residual_branch

__all__ = ["Block", "is_plain_block", "joins_norms", "run_column", "run_mirrored_pair"]

moved.answer(__name__)


class Block(nn.Module):
    """x + DropPath(mixer(norm(x))).

    The published code carries (hidden, residual) from block to block and drops the incoming hidden; adding at the end
    of the block that made it is the same function, with the drop rate moved to that block.

    Args:
        norm: pre-normalisation.
        mixer: maps [B, L, D] to [B, L, D]; its ``residual_branch(norm)``, where it has one, describes the whole block
            to the operators that run it in one call, or returns None.
        drop_path: probability of dropping the mixer's output, per image.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to x [B, L, D]."""
        added: Tensor = self.drop_path(self.mixer(self.norm(x)))
        return added

    def described(self) -> Branch | None:
        """What the block is now to the operators that run it in one call.

        None where it is not x + mixer(norm(x)), since the mixer's output is dropped, say, or someone looks at it, or
        where the mixer does not describe itself.
        """
        modules: dict[str, Any] = self._modules  # looking each up as an attribute would take as long as a token
        mixer = modules["mixer"]
        if type(self).branch is not Block.branch or not drops_nothing(modules["drop_path"]):
            return None
        describe = getattr(mixer, "residual_branch", None)
        description: Branch | None = None if describe is None else describe(modules["norm"])
        return description

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on the stream x [B, L, D]."""
        described = self.described()
        whole = None if described is None else try_residual_branch(x, described)
        if whole is not None:
            return whole
        return x + self.branch(x)


def joins_norms(blocks: Iterable[nn.Module], x: Tensor) -> bool:
    """Tell whether :func:`run_column` saves passes over the stream x and nothing looks at a block or has changed it."""
    if not fuses_norms(x) or has_global_hooks():
        return False
    return all(is_plain_block(block) for block in blocks)


def is_plain_block(block: nn.Module) -> bool:
    """Tell whether calling a module does no more than :meth:`Block.forward`."""
    return type(block) is Block and is_plain(block) and "branch" not in block.__dict__


def run_column(blocks: Iterable[Block], x: Tensor) -> Tensor:
    """Run the blocks one after the other on the stream x [B, L, D], each addition joined to the next block's norm.

    Call it where :func:`joins_norms`.
    """
    added: Tensor | None = None
    for block in blocks:
        x, normalised = add_and_norm(block.norm, x, added)
        added = block.drop_path(block.mixer(normalised))
    return x if added is None else x + added


def run_mirrored_pair(forward: Block, backward: Block, x: Tensor) -> Tensor:
    """Run two blocks side by side, the second one's mixer walking the sequence from its end.

    The published code reverses the second layer's input and output and adds both (hidden, residual) pairs, so the
    stream itself doubles with every pair: 2x + forward(x) + backward(x). Kept, for it is part of the function.
    Source: the "Bidirectional Layer" row of Vim's table 4.
    """
    return 2 * x + forward.branch(x) + backward.branch(x)
