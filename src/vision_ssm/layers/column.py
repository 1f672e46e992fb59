"""A column of blocks in one call on the CPU, described once for as long as nobody changes it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from vision_ssm.layers.blocks import Block, is_plain_block
from vision_ssm.layers.norms import described_norm
from vision_ssm.layers.options import has_global_hooks
from vision_ssm.ops import ResidualColumn

__all__ = ["try_one_call"]

_attributes = attrgetter("__dict__")

KEY = "_vision_ssm_column"  # under which a ModuleList's attributes have what is known of it
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Snapshot:
    """What blocks and the modules inside hold, to tell later whether any of it has been changed.

    Their classes, attributes, parameters, buffers, children and hooks; not the tensors' memory and values.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        modules = [module for block in blocks for module in block.modules()]
        self._modules = modules
        self._classes = list(map(type, modules))
        self._members: list[dict[str, Any]] = [d for m in modules for d in (m._parameters, m._buffers, m._modules)]
        self._hooks = [getattr(module, name) for module in modules for name in HOOKS]
        self._seen = self._values()
        self._held = list(self._holding())

    def holds(self) -> bool:
        """Tell whether nothing has been changed; no hook counts as nothing."""
        if any(self._hooks) or not all(map(is_, map(type, self._modules), self._classes)):
            return False
        if sum(map(len, self._members)) != len(self._held) or not all(map(is_, self._holding(), self._held)):
            return False
        try:
            return self._values() == self._seen  # which looks for the same objects before it compares any
        except Exception:  # noqa: BLE001 -- something has become another that cannot be compared, like a tensor
            return False

    def _values(self) -> list[tuple[Any, ...]]:
        return list(map(tuple, map(dict.values, map(_attributes, self._modules))))

    def _holding(self) -> chain[Any]:
        return chain.from_iterable(map(dict.values, self._members))


class _Known:
    """Blocks as they were when they were described. Copies and pickles have an empty dictionary in its place."""

    def __init__(self, blocks: nn.ModuleList, column: ResidualColumn) -> None:
        self.column = column
        self._blocks = list(blocks)
        self._snapshot = _Snapshot(self._blocks)

    def holds(self, blocks: nn.ModuleList) -> bool:
        """Tell whether these are the blocks, and nobody has changed any."""
        same = len(blocks) == len(self._blocks) and all(map(is_, blocks, self._blocks))
        return same and self._snapshot.holds()

    def __reduce__(self) -> tuple[type[OrderedDict[str, Any]], tuple[()]]:
        return OrderedDict, ()  # which every unpickler allows


def try_one_call(
    blocks: nn.ModuleList, x: Tensor, norm: nn.Module | None = None, rows: tuple[int, ...] = ()
) -> Tensor | None:
    """Run the blocks one after the other on the stream x [B, L, D] in one call, for inference on the CPU.

    With a ``norm``, only the chosen ``rows`` of the result go through it and are returned, [B, rows, D]; rows may be
    counted from the end.

    None where that is not possible: gradients are wanted, say, or something looks at a block. What the call needs to
    know of the blocks is kept until one of them is changed, and so are the modules and weights that they had.
    """
    if type(x) is not Tensor or not x.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    column = None if has_global_hooks() else _column(blocks)
    if column is None:
        return None
    if norm is None:
        return column.try_run(x)
    of_norm = described_norm(norm)
    chosen = None if of_norm is None else column.try_run(x, rows, of_norm)
    return chosen if chosen is None or of_norm is None else chosen.to(of_norm.weight.dtype)


def _column(blocks: nn.ModuleList) -> ResidualColumn | None:
    # With the blocks themselves, so that it goes when they go, whatever refers to whatever.
    known = blocks.__dict__.get(KEY)
    if isinstance(known, _Known) and known.holds(blocks):
        return known.column
    blocks.__dict__.pop(KEY, None)
    branches = []
    for block in blocks:
        described = block.described() if isinstance(block, Block) and is_plain_block(block) else None
        if described is None:
            return None
        branches.append(described)
    column = ResidualColumn(branches)
    blocks.__dict__[KEY] = _Known(blocks, column)
    return column
