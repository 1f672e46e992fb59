"""Random scans and the error rule that every backend is held to."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version

import pytest
import torch
from torch import Tensor

from vision_ssm.ops import Traversal, dispatch, gpu, native, selective_scan
from vision_ssm.ops.add_norm import op as norm
from vision_ssm.ops.scan import triton as scan_triton

KERNEL_MISSING = native.MISSING
needs_kernel = pytest.mark.skipif(KERNEL_MISSING is not None, reason=f"no C++ kernel: {KERNEL_MISSING}")

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def device_of(backend: str | None) -> torch.device:
    """Where a test of the backend keeps its tensors."""
    return torch.device("cuda" if GPU and backend == "triton" else "cpu")


def _interpreter_is_broken() -> bool:
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    return triton < (3, 7) and numpy >= (2, 4)


def use_instruction_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the C++ kernels run with that instruction set."""
    if name not in native.runnable():
        pytest.skip(native.MISSING or f"this machine or build lacks {name}")
    monkeypatch.setattr(native, "ISA", native.INSTRUCTION_SETS.index(name))


def use(monkeypatch: pytest.MonkeyPatch, segment_chunks: int | None = None) -> None:
    """Let the Triton kernels run here, and nothing else where they can."""
    monkeypatch.setattr(gpu, "INTERPRETED", not GPU)
    if not GPU:  # then tensors on the CPU stand for a GPU's, which no other kernels take
        monkeypatch.setitem(
            dispatch._NEEDS, "cpu", lambda device, dtype: "Triton's interpreter takes the CPU's tensors"
        )
    reason = gpu.why_not(device_of("triton"), torch.float32)
    if reason is None and not GPU and _interpreter_is_broken():
        reason = "the interpreter of triton before 3.7 takes no loop bounds from numpy 2.4 and later"
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(norm, "LEAST_ELEMENTS", 0)
    monkeypatch.setattr(scan_triton, "SEGMENT_CHUNKS", segment_chunks)


def placed(x: Tensor | None, device: torch.device) -> Tensor | None:
    """The tensor on a device with its strides, which ``to`` would tidy up."""
    if x is None or x.device == device:
        return x
    storage = torch.tensor([], dtype=x.dtype).set_(x.untyped_storage()).to(device)
    return storage.as_strided(x.size(), x.stride(), x.storage_offset())


def both_ways(length: int) -> tuple[Traversal, ...]:
    return (Traversal.sequence(length), Traversal.sequence(length, reverse=True))


def cross(height: int, width: int) -> tuple[Traversal, ...]:
    return tuple(
        walk(height, width, reverse=reverse)
        for reverse, walk in itertools.product((False, True), (Traversal.rows, Traversal.columns))
    )


def atrous(height: int, width: int) -> tuple[Traversal, ...]:
    offsets = ((0, 0, False), (1, 0, True), (0, 1, False), (1, 1, True))
    return tuple(
        Traversal.subgrid(height, width, step=2, row=row, column=column, column_major=major)
        for row, column, major in offsets
    )


def each_line(height: int, width: int) -> tuple[Traversal, ...]:
    """Rows and columns one by one, the reversed ones written as if they were not: VMamba's cascade."""
    walks = []
    for each in (Traversal.each_row, Traversal.each_column):
        there = each(height, width)
        walks += [there, each(height, width, reverse=True).written_as(there)]
    return tuple(walks)


@dataclass(frozen=True, eq=False)  # hashed by identity, so that reference results can be kept
class Case:
    """One scan: tensors by name (None where absent), walks and flags."""

    tensors: dict[str, Tensor | None]
    traversals: tuple[Traversal, ...]
    merge: bool = True
    delta_softplus: bool = True

    def to(self, dtype: torch.dtype) -> Case:
        """The same values in another dtype; parameters stay in the state's dtype."""
        state = torch.float64 if dtype == torch.float64 else torch.float32
        of = {name: state if name in ("A", "D", "delta_bias") else dtype for name in NAMES}
        return replace(self, tensors={n: None if x is None else x.to(of[n]) for n, x in self.tensors.items()})

    def run(self, backend: str | None = None) -> dict[str, Tensor]:
        """Return the output under 'y' and every input's gradient for a fixed output gradient."""
        here = {n: placed(x, device_of(backend)) for n, x in self.tensors.items()}
        leaves = {n: None if x is None else x.detach().requires_grad_() for n, x in here.items()}
        y = selective_scan(
            **leaves,
            traversals=self.traversals,
            merge=self.merge,
            delta_softplus=self.delta_softplus,
            backend=backend,
        )
        weights = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].view(y.shape).to(y)
        present = {n: x for n, x in leaves.items() if x is not None}
        gradients = torch.autograd.grad((y * weights).sum(), list(present.values()))
        return {n: x.cpu() for n, x in zip(("y", *present), (y.detach(), *gradients), strict=True)}


@cache
def random_case(
    tokens: int,
    traversals: tuple[Traversal, ...],
    *,
    batch: int = 2,
    channels: int = 20,
    states: int = 16,
    shared: tuple[str, ...] = (),
    absent: tuple[str, ...] = (),
    merge: bool = True,
    delta_softplus: bool = True,
    seed: int = 0,
) -> Case:
    """A float64 case whose step sizes and decays have the spread of trained networks (delta 0.01 to 2)."""
    generator = torch.Generator().manual_seed(seed)
    directions = len(traversals)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def per_direction(name: str, last: int) -> Tensor:
        return normal(batch, 1 if name in shared else directions, tokens, last)

    rates = torch.arange(1, states + 1, dtype=torch.float64) * (1 + 0.1 * normal(directions, channels, states)).abs()
    tensors: dict[str, Tensor | None] = {
        "u": per_direction("u", channels),
        "delta": per_direction("delta", channels) - 2 if delta_softplus else per_direction("delta", channels).abs() / 4,
        "A": -rates,
        "B": per_direction("B", states),
        "C": per_direction("C", states),
        "D": normal(directions, channels),
        "z": normal(batch, tokens, channels),
        "delta_bias": normal(directions, channels) / 4 if delta_softplus else normal(directions, channels).abs() / 4,
    }
    tensors.update(dict.fromkeys(absent))
    return Case(tensors, traversals, merge, delta_softplus)


# Relative floors of the error rule, a few units in the last place of the dtype: gradients that nearly cancel need them.
FLOORS = {torch.float64: 1e-14, torch.float32: 5e-7, torch.bfloat16: 2e-3, torch.float16: 3e-4}


def relative_error(x: Tensor, exact: Tensor) -> float:
    scale = exact.double().norm()
    return float((x.double() - exact.double()).norm() / scale) if scale > 0 else float(x.double().norm())


@cache
def _reference(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The exact and the plain results; every backend is compared with the same ones."""
    case = case.to(dtype)
    return case.to(torch.float64).run("reference"), case.run("reference")


def check_against_reference(case: Case, dtype: torch.dtype, backend: str | None) -> None:
    """Outputs and gradients: at most twice the error of plain torch operations in the same dtype, plus the floor.

    Plain torch is the sequential reference run in ``dtype``; exact is the reference in float64 on the same inputs.
    """
    exact, plain = _reference(case, dtype)
    ours = case.to(dtype).run(backend)
    for name, value in ours.items():
        assert value.dtype == plain[name].dtype and value.shape == exact[name].shape, name
        assert torch.isfinite(value).all(), f"{name} has elements that are not finite"
        error, allowed = relative_error(value, exact[name]), relative_error(plain[name], exact[name])
        assert error <= 2 * allowed + FLOORS[dtype], f"{name}: {error:.2e}, plain torch {allowed:.2e}"
