"""The one question before modules are passed by: would calling them do just what the code as shipped does, unwatched?

A call that does the work of several modules (one_call.py), and an operation that takes a layer's weight past the layer
or writes over what it returned, is right only then. A class says with :func:`built_of` what its forward calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import chain
from operator import attrgetter, is_, itemgetter
from types import FunctionType, NoneType
from typing import NamedTuple, TypeVar

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vision_ssm.ops.dispatch import intercepted

__all__ = ["Unchanged", "built_of", "untouched"]

Kind = TypeVar("Kind", bound=type[nn.Module])
INITIAL = {"__init__", "init_weights", "reset_parameters"}  # which no call enters
WEIGHTS = frozenset((Tensor, nn.Parameter, NoneType))  # subclasses have rules of their own
_hooks = itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_members = itemgetter("_parameters", "_buffers", "_modules")


class _Shipped(NamedTuple):
    """A class as shipped: its parts' classes, and the functions that a call may enter, by name."""

    parts: dict[str, tuple[type, ...]]
    functions: dict[str, object]
    found: Callable[[type], tuple[object, ...]]  # what has these names now
    were: tuple[object, ...]


_shipped: dict[type, _Shipped] = {}


def built_of(**parts: type | tuple[type, ...]) -> Callable[[Kind], Kind]:
    """Note a class as shipped: its forward calls the named ``parts``, which are of just these classes."""

    def note(kind: Kind) -> Kind:
        own = set().union(*map(vars, kind.__mro__[: kind.__mro__.index(nn.Module)])) - INITIAL
        names = [name for name in own if isinstance(getattr(kind, name), FunctionType)]
        functions = {name: _original(kind, name) for name in (*names, "__call__", "_call_impl", "__getattr__")}
        each = {name: part if isinstance(part, tuple) else (part,) for name, part in parts.items()}
        _shipped[kind] = _Shipped(each, functions, attrgetter(*functions), tuple(functions.values()))
        return kind

    return note


def _original(kind: type, name: str) -> object:
    """Return a method, or what none is equal to where somebody has already put another function in its place."""
    definer = next(k for k in kind.__mro__ if name in vars(k))
    function = vars(definer)[name]
    return function if function.__globals__ is vars(sys.modules[definer.__module__]) else object()


for layer in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.Identity, nn.Dropout, nn.GELU, DropPath):
    built_of()(layer)
built_of(fc1=nn.Linear, act=nn.GELU, drop1=nn.Dropout, norm=nn.Identity, fc2=nn.Linear, drop2=nn.Dropout)(Mlp)


def untouched(*modules: nn.Module, inside: bool = False) -> bool:
    """Tell whether calling each module, and all that it calls, does just what the code as shipped does, unwatched.

    Not so where a class is another one (a subclass, an adapter, a quantised or parametrised layer), a method was
    replaced in the class or the instance, there are hooks (the module's or torch's global ones), ``compile()`` was
    called, a weight is of another class than torch's, or a mode, a tracer or a transform is at work. ``inside`` tells
    that the module's own forward asks: its own hooks are called around it.
    """
    return not _watched() and all(_as_shipped(module, inside) for module in modules)


def _watched() -> bool:
    everywhere = torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return bool(torch.compiler.is_compiling() or everywhere or intercepted())


def _as_shipped(module: nn.Module, inside: bool = False) -> bool:
    own, shipped = vars(module), _shipped.get(type(module))
    if shipped is None or shipped.found(type(module)) != shipped.were or not shipped.functions.keys().isdisjoint(own):
        return False
    if not inside and (any(_hooks(own)) or own.get("_compiled_call_impl")):
        return False
    if not WEIGHTS.issuperset(map(type, own["_parameters"].values())):
        return False
    held = own["_modules"]
    for name, kinds in shipped.parts.items():
        if type(held.get(name)) not in kinds or not _as_shipped(held[name]):
            return False
    return True


class Unchanged:
    """Whether the shipped modules within one, found untouched, have stayed so and hold the same objects."""

    def __init__(self, root: nn.Module) -> None:
        self._modules = [module for module in root.modules() if type(module) in (nn.ModuleList, *_shipped)]
        self._kinds = [(kind, _shipped[kind]) for kind in {*map(type, self._modules)} - {nn.ModuleList}]
        self._hooks = [hooks for module in self._modules for hooks in _hooks(vars(module))]
        self._held = list(self._holding())

    def holds(self) -> bool:
        """Tell whether nothing was replaced, added or hooked. Values of tensors are not looked at."""
        if _watched() or any(self._hooks) or any(shipped.found(kind) != shipped.were for kind, shipped in self._kinds):
            return False
        return all(map(is_, self._holding(), self._held))

    def _holding(self) -> Iterator[object]:
        """The classes, and all attributes, parameters, buffers and children, with a mark for the end."""
        own = list(map(vars, self._modules))
        inside = chain.from_iterable(map(_members, own))
        held = chain.from_iterable(map(dict.values, chain(own, inside)))
        return chain(map(type, self._modules), held, (Unchanged,))
