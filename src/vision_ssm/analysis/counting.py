"""Counting what one forward pass does on meta tensors: multiply-adds per module, saved and live bytes."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import vision_ssm.ops  # noqa: F401 -- defines the scan operator counted here
from vision_ssm.ops.traversal import unflatten

__all__ = ["LiveBytes", "MacCounter", "Macs", "inner_path", "saved_bytes"]

SCAN = torch.ops.vision_ssm.selective_scan
GLA = torch.ops.vision_ssm.gla
TAP = torch.ops.aten.addcmul
NORM = torch.ops.aten.native_layer_norm
# The counter takes the first apart into the second in some versions of torch (2.11 is one).
BATCH_NORMS = (torch.ops.aten.native_batch_norm, torch.ops.aten._native_batch_norm_legit_no_training)


def _scan_flops(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, walks: Any, *_: Any, **__: Any
) -> int:
    """Twice the multiply-adds of a scan (the counter halves them): 9 C N per token visited, and C for the skip."""
    _, channels, states = A
    visited = sum(walk.length for walk in unflatten(walks))
    return 2 * int(u[0] * visited * channels * (9 * states + (D is not None)))


def _gla_flops(q: Any, k: Any, v: Any, gates: Any, heads: int, scale: float, walks: Any, *_: Any, **__: Any) -> int:
    """Twice the multiply-adds of gated linear attention: 3 N V per head and token visited."""
    visited = sum(walk.length for walk in unflatten(walks))
    return 2 * int(3 * q[0] * visited * q[2] * v[2] // heads)


def _tap_flops(*_: Any, out_shape: Any = None, **__: Any) -> int:
    """Twice the multiply-adds of one tap of the causal convolution, which is one addcmul over all its results."""
    return 2 * int(math.prod(out_shape))


def _norm_flops(x: Any, _: Any, weight: Any, *__: Any, **___: Any) -> int:
    """Twice what fvcore counts for a LayerNorm: five per value, or four without weights."""
    return 2 * int(math.prod(x)) * (4 if weight is None else 5)


def _batch_norm_flops(x: Any, *_: Any, **__: Any) -> int:
    """Twice what fvcore counts for a BatchNorm in inference: two per value."""
    return 2 * int(math.prod(x)) * 2


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one forward pass inside a module.

    ``scans`` (gated linear attention is one) and ``taps`` are parts of ``total``. ``norms`` is not: no multiply-adds,
    but what fvcore counts for LayerNorms and BatchNorms, and with it some papers.
    """

    total: int
    scans: int
    taps: int
    norms: int


class MacCounter:
    """Multiply-adds of matrix products, convolutions, attention and scans, per module, while entered.

    A scan counts 9·L·C·N per direction, as Mamba's authors answer it (state-spaces/mamba, issue 110), and L·C for its
    skip connection, as VMamba and EfficientVMamba publish. Gated linear attention counts 3·N·V per token, head and
    direction: the state of N × V values decays, takes in a product, and is read. Element-wise operations and
    normalisations count nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self._root = type(model).__name__
        mapping: dict[Any, Any] = {SCAN: _scan_flops, GLA: _gla_flops, TAP: _tap_flops, NORM: _norm_flops}
        mapping |= dict.fromkeys(BATCH_NORMS, _batch_norm_flops)
        self._counter = FlopCounterMode(display=False, custom_mapping=mapping)

    def __enter__(self) -> MacCounter:
        self._counter.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)  # type: ignore[no-untyped-call]

    def of(self, module: str = "") -> Macs:
        """Return what was counted inside the module of that dotted name, or in the whole model for ``''``."""
        counts = self._counter.get_flop_counts()
        by_operator = counts.get(f"{self._root}.{module}" if module else "Global", {})
        scan, gla, taps, *both = (by_operator.get(each, 0) // 2 for each in (SCAN, GLA, TAP, NORM, *BATCH_NORMS))
        norms = sum(both)
        return Macs(sum(by_operator.values()) // 2 - norms, scan + gla, taps, norms)

    def within(self, path: str, module: nn.Module) -> Macs:
        """Return what :meth:`of` does; a mere container, which is never called itself, has the counts of its parts."""
        own = self.of(path)
        if own.total or own.norms:
            return own
        parts = [self.within(inner_path(path, name), part) for name, part in module.named_children()]
        return Macs(*(sum(counts) for counts in zip(*map(astuple, parts), strict=True))) if parts else own


def inner_path(path: str, name: str) -> str:
    """Return the dotted name, from the root, of what is called ``name`` inside the module at ``path``."""
    return ".".join(filter(None, (path, name)))


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            yield leaf.untyped_storage()


def storage_keys(tensors: Iterable[Tensor]) -> set[int]:
    """Identities of the memory blocks behind ``tensors``."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}


@contextmanager
def saved_bytes(apart_from: Iterable[Tensor]) -> Iterator[list[int]]:
    """Count the memory that autograd keeps for the backward pass while entered; the one-element list holds the bytes.

    Every block of memory counts once however many operations save it, and those behind ``apart_from`` (parameters and
    buffers, which exist anyway) not at all.
    """
    seen = storage_keys(apart_from)
    kept: list[Tensor] = []  # holds the blocks, so that no identity is used twice
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(tensor)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows which results of operations are alive; ``peak`` is the most bytes alive at once.

    Blocks behind ``apart_from`` are not counted. Memory that a kernel takes and gives back inside one operation is
    not seen.
    """

    def __init__(self, apart_from: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known = storage_keys(apart_from)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note the memory of what it returns."""
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._note(storage)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
