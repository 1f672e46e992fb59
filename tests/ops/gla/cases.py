"""Random calls of gated linear attention, and the error rule that every backend is held to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.scan.cases import FLOORS, device_of, placed, relative_error
from vision_ssm.ops import Traversal, gla

NAMES = ("q", "k", "v", "log_gates")


@dataclass(frozen=True, eq=False)  # hashed by identity, so that reference results can be kept
class Case:
    """One call: tensors in the order of NAMES, heads, walks."""

    tensors: tuple[Tensor, ...]
    heads: int
    traversals: tuple[Traversal, ...]
    merge: bool = True

    def to(self, dtype: torch.dtype) -> Case:
        """The same values in another dtype; the log-gates stay in the state's dtype."""
        state = torch.float64 if dtype == torch.float64 else torch.float32
        return replace(self, tensors=tuple(x.to(state if at == 3 else dtype) for at, x in enumerate(self.tensors)))

    def call(self, *tensors: Tensor, backend: str | None = None) -> Tensor:
        return gla(*tensors, heads=self.heads, traversals=self.traversals, merge=self.merge, backend=backend)

    def run(self, backend: str | None = None) -> dict[str, Tensor]:
        """Return the output under 'y' and every input's gradient for a fixed output gradient."""
        here = [placed(x, device_of(backend)) for x in self.tensors]
        leaves = [x.detach().requires_grad_() for x in here if x is not None]
        y = self.call(*leaves, backend=backend)
        weights = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].view(y.shape).to(y)
        gradients = torch.autograd.grad((y * weights).sum(), leaves)
        return {n: x.cpu() for n, x in zip(("y", *NAMES), (y.detach(), *gradients), strict=True)}


@cache
def random_case(
    tokens: int,
    traversals: tuple[Traversal, ...],
    *,
    batch: int = 2,
    heads: int = 2,
    keys: int = 8,
    values: int = 12,
    merge: bool = True,
    seed: int = 0,
) -> Case:
    """A float64 case whose gates have the spread of trained networks: some near 1, some that forget at once."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (normal(batch, tokens, heads * keys) for _ in range(2))
    gates = F.logsigmoid(4 * normal(batch, len(traversals), tokens, heads * keys)) / 16
    gates = torch.where(normal(*gates.shape) > 2, 40 * gates, gates)
    return Case((q, k, normal(batch, tokens, heads * values), gates), heads, traversals, merge)


@cache
def _reference(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    case = case.to(dtype)
    return case.to(torch.float64).run("reference"), case.run("reference")


def check_against_reference(case: Case, dtype: torch.dtype, backend: str | None) -> None:
    """Outputs and gradients: at most twice the error of plain torch operations in the same dtype, plus the floor."""
    exact, plain = _reference(case, dtype)
    for name, value in case.to(dtype).run(backend).items():
        assert value.dtype == plain[name].dtype and value.shape == exact[name].shape, name
        assert torch.isfinite(value).all(), f"{name} has elements that are not finite"
        error, allowed = relative_error(value, exact[name]), relative_error(plain[name], exact[name])
        assert error <= 2 * allowed + FLOORS[dtype], f"{name}: {error:.2e}, plain torch {allowed:.2e}"
