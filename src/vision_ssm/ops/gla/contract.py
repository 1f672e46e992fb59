"""What every backend of gated linear attention is given and must return.

Each has two functions. ``forward(call)`` returns the output; ``backward(call, grad)`` returns :class:`GlaGradients` for
``grad``, the gradient of the output. Nothing is kept from one to the other: the states are recomputed, which takes a
third of a forward pass and no memory between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vision_ssm.ops.traversal import Traversal

__all__ = ["GlaCall", "GlaGradients"]


@dataclass(slots=True)
class GlaCall:
    """The checked arguments of one call: B batch, K directions, L tokens, H heads, N key and V value channels of each.

    ``q, k`` [B, L, H N] and ``v`` [B, L, H V] share one dtype; ``log_gates`` [B, K, L, H N] are in the state's dtype.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_gates: Tensor
    heads: int
    scale: float
    traversals: tuple[Traversal, ...]
    merge: bool

    @property
    def batch(self) -> int:
        """Number of images, B."""
        return self.q.shape[0]

    @property
    def tokens(self) -> int:
        """Number of tokens per image, L."""
        return self.q.shape[1]

    @property
    def keys(self) -> int:
        """Key channels of a head, N."""
        return self.q.shape[2] // self.heads

    @property
    def values(self) -> int:
        """Value channels of a head, V."""
        return self.v.shape[2] // self.heads

    def output_shape(self) -> tuple[int, ...]:
        """Return the result's shape: [B, L, H V] merged, [B, K, L, H V] per direction."""
        directions = () if self.merge else (len(self.traversals),)
        return (self.batch, *directions, *self.v.shape[1:])


class GlaGradients(NamedTuple):
    """Gradients in the shapes and dtypes of their inputs."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_gates: Tensor
