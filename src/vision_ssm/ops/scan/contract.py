"""What every backend of the scan is given and must return: the call, its gradients, and the saved states' layout.

Each has two functions. ``forward(call, save_states)`` returns the output and the states before every chunk of steps, an
empty tensor unless ``save_states``. ``backward(call, states, grad)`` returns :class:`ScanGradients` for ``grad``, the
gradient of the output, from the states that ``forward`` saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vision_ssm.ops.traversal import Traversal

__all__ = [
    "CHUNK",
    "ScanCall",
    "ScanGradients",
    "chunk_count",
    "chunks_of",
    "saved_states_shape",
]

# Training keeps the state at every CHUNK-th step (and where a walk starts anew) and recomputes the steps between: N/8
# bytes per token, channel and direction in float32, half of one activation at 16 states.
CHUNK = 32


@dataclass(slots=True)
class ScanCall:
    """The checked arguments of one scan. Shapes use B batch, K directions, L tokens, C channels, N states.

    ``u, delta`` [B, K|1, L, C] and ``B, C`` [B, K|1, L, N] share one dtype, a direction axis of 1 means shared;
    ``A`` [K, C, N], ``D`` and ``delta_bias`` [K, C] are in the state's dtype; ``z`` [B, L, C] is u's dtype.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    traversals: tuple[Traversal, ...]
    delta_softplus: bool
    merge: bool

    @property
    def batch(self) -> int:
        """Number of images, B."""
        return self.u.shape[0]

    @property
    def tokens(self) -> int:
        """Number of tokens per image, L."""
        return self.u.shape[2]

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        return self.A.shape[1]

    @property
    def states(self) -> int:
        """Number of states per channel, N."""
        return self.A.shape[2]

    def output_shape(self) -> tuple[int, ...]:
        """Return the result's shape: [B, L, C] merged, [B, K, L, C] per direction."""
        directions = () if self.merge else (len(self.traversals),)
        return (self.batch, *directions, self.tokens, self.channels)

    def output(self) -> Tensor:
        """Allocate the result."""
        return self.u.new_empty(self.output_shape())


class ScanGradients(NamedTuple):
    """Gradients in the shapes and dtypes of their inputs; None where the input was absent."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


def chunk_count(length: int, inner_count: int = 1, reset: bool | int = False) -> int:
    """Return how many boundary states a walk keeps: chunks end where the state starts anew."""
    if reset:
        return length // inner_count * chunk_count(inner_count) + chunk_count(length % inner_count)
    return (length + CHUNK - 1) // CHUNK


def chunks_of(walk: Traversal) -> list[range]:
    """Return the steps of each chunk, in order."""
    run = walk.inner_count if walk.reset else max(walk.length, 1)
    return [
        range(first, min(first + CHUNK, start + run, walk.length))
        for start in range(0, walk.length, run)
        for first in range(start, min(start + run, walk.length), CHUNK)
    ]


def saved_states_shape(call: ScanCall) -> tuple[int, int, int, int, int]:
    """Return [B, K, chunks, N, C]: the state before the first step of every chunk of every direction."""
    longest = max(chunk_count(walk.length, walk.inner_count, walk.reset) for walk in call.traversals)
    return (call.batch, len(call.traversals), longest, call.states, call.channels)
