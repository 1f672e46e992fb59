"""Public operators and the registered ones, right and wrong arguments, between guard pages, against the reference."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fuzz.faults import Fault, compare, outcome_of
from fuzz.guarded import Guards
from vision_ssm import ops
from vision_ssm.ops.traversal import flatten

__all__ = ["case"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXACT = (torch.float32, torch.float64)
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
Arguments = dict[str, Any]


class Operator(NamedTuple):
    """How to make a right call, to run one of any arguments, and to have the reference run it, if not the same way."""

    arguments: Callable[[random.Random, torch.dtype], Arguments]
    run: Callable[[Arguments], Any]
    right: Callable[[Arguments], Any] | None = None


def case(rng: random.Random, folder: Path) -> None:
    """Run one call by both ways; see :mod:`fuzz.faults`."""
    torch.manual_seed(rng.randrange(2**31))
    name = rng.choice(list(OPERATORS))
    operator = OPERATORS[name]
    arguments = operator.arguments(rng, rng.choice((torch.float32, torch.float32, torch.float32, torch.bfloat16)))
    changes = [_change(rng, arguments) for _ in range(rng.choice((0, 1, 1, 2)))]
    guards, at_end = Guards(), rng.random() < 0.7
    guarded = {k: guards.around(v, at_end=at_end) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    training = rng.random() < 0.25
    torch.set_num_threads(rng.choice((1, 1, 2)))
    try:
        found = outcome_of(lambda: _run(operator.run, guarded, training))
        if name.startswith("torch.ops") and found.error is not None:  # it may refuse what the public one converts
            return
        with mock.patch.dict(os.environ, {"VISION_SSM_BACKEND": "reference"}):
            right = outcome_of(lambda: _run(operator.right or operator.run, arguments, training))
        exact = all(v.dtype in EXACT for v in arguments.values() if isinstance(v, Tensor))
        compare(found, right, 2e-3 if exact else 0.15)
    except Fault as fault:
        shown = {k: _shown(v) for k, v in arguments.items()}
        raise Fault(f"{name}: {fault}\n  changed: {changes}, gradients: {training}\n  arguments: {shown}") from None


def _run(run: Callable[[Arguments], Any], arguments: Arguments, training: bool) -> Any:
    if not training:
        with torch.no_grad():
            return run(dict(arguments))
    leaves = {
        k: v.detach().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in arguments.items()
    }
    value = run(dict(leaves))
    values = [value] if isinstance(value, Tensor) else list(value)
    wanted = [v for v in leaves.values() if isinstance(v, Tensor) and v.requires_grad]
    gradients = torch.autograd.grad([v.double().square().sum() for v in values], wanted, allow_unused=True)
    return [*values, *(x for x in gradients if x is not None)]


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout is torch.strided else value.layout
        return f"{list(value.shape)} {str(value.dtype)[6:]} {value.device.type} strides {strides}"
    return str(value)


# ------------------------------------------------------------------------------------------------- right arguments


def _randn(rng: random.Random, dtype: torch.dtype, *shape: int) -> Tensor:
    x = torch.randn(shape) * 0.5
    return _restride(rng, x.to(dtype)) if rng.random() < 0.15 else x.to(dtype)


def _restride(rng: random.Random, x: Tensor) -> Tensor:
    """Return the same values in another order of memory, or with gaps between them."""
    kind = rng.choice(("transposed", "gaps", "expanded", "flipped", "negated"))
    if kind == "transposed" and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "gaps" and x.dim():
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    if kind == "expanded" and x.dim() and x.shape[0] > 0:
        return x[:1].expand_as(x)
    if kind == "negated" and x.dtype == torch.float32:
        return torch.complex(torch.zeros_like(x), -x).conj().imag
    return x.flip(tuple(range(x.dim())))


def _walks(rng: random.Random, count: int) -> tuple[int, tuple[ops.Traversal, ...]]:
    height, width = rng.choice((1, 2, 5, 8)), rng.choice((1, 3, 7, 40))
    makers = (ops.Traversal.rows, ops.Traversal.columns, ops.Traversal.each_row, ops.Traversal.each_column)
    if count == 4 and rng.random() < 0.3:
        subgrids = [
            ops.Traversal.subgrid(height, width, step=2, row=r, column=c) for r, c in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        return height * width, tuple(subgrids)
    return height * width, tuple(rng.choice(makers)(height, width, reverse=rng.random() < 0.5) for _ in range(count))


def _scan(rng: random.Random, dtype: torch.dtype) -> Arguments:
    batch, k, c, n = rng.choice((1, 2, 3)), rng.choice((1, 2, 4)), rng.choice((1, 5, 16, 33)), rng.choice((1, 3, 16))
    tokens, walks = _walks(rng, k)

    def shared() -> int:
        return rng.choice((1, k))

    return {
        "u": _randn(rng, dtype, batch, shared(), tokens, c),
        "delta": _randn(rng, dtype, batch, shared(), tokens, c),
        "A": -torch.rand(k, c, n),
        "B": _randn(rng, dtype, batch, shared(), tokens, n),
        "C": _randn(rng, dtype, batch, shared(), tokens, n),
        "D": rng.choice((None, torch.randn(shared(), c))),
        "z": rng.choice((None, _randn(rng, dtype, batch, tokens, c))),
        "delta_bias": rng.choice((None, torch.randn(shared(), c))),
        "traversals": walks,
        "merge": rng.random() < 0.7,
    }


def _scan_directly(rng: random.Random, dtype: torch.dtype) -> Arguments:
    given = _scan(rng, dtype)
    k = len(given["traversals"])
    for name in ("D", "delta_bias"):
        if given[name] is not None:
            given[name] = given[name].expand(k, -1).contiguous()
    given["walks"] = flatten(given.pop("traversals"))
    return given | {"softplus": True, "save": rng.random() < 0.5, "backend": "auto"}


def _run_scan_directly(a: Arguments) -> Any:
    y, states = torch.ops.vision_ssm.selective_scan(
        *(a[n] for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "walks", "softplus", "merge", "save")),
        a["backend"],
    )
    if a["save"]:
        torch.ops.vision_ssm.selective_scan_backward(
            torch.ones_like(y),
            states,
            *(a[n] for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "walks", "softplus", "merge")),
            a["backend"],
        )
    return y


def _conv(rng: random.Random, dtype: torch.dtype) -> Arguments:
    k, c, taps = rng.choice((1, 2)), rng.choice((1, 5, 16, 33)), rng.choice((1, 2, 4, 8, 9))
    return {
        "x": _randn(rng, dtype, rng.choice((1, 2)), rng.choice((0, 1, 3, 70)), c),
        "weight": _randn(rng, torch.float32, k, c, taps),
        "bias": rng.choice((None, _randn(rng, torch.float32, k, c))),
        "reverse": tuple(rng.random() < 0.5 for _ in range(k)),
        "activation": rng.random() < 0.5,
    }


def _run_conv_directly(a: Arguments) -> Any:
    return torch.ops.vision_ssm.causal_conv1d(a["x"], a["weight"], a["bias"], list(a["reverse"]), a["activation"])


def _ssm_weights(rng: random.Random, dtype: torch.dtype, k: int, sets: int, c: int, n: int, taps: int) -> Arguments:
    rank = rng.choice((1, 2, 3))
    return {
        "A_log": _randn(rng, dtype, k, c, n),
        "D": _randn(rng, dtype, sets, c),
        "x_proj_weight": _randn(rng, dtype, sets, rank + 2 * n, c),
        "dt_proj_weight": _randn(rng, dtype, sets, c, rank),
        "dt_proj_bias": _randn(rng, dtype, sets, c),
        "conv_weight": _randn(rng, dtype, sets, c, taps) if taps else None,
        "conv_bias": _randn(rng, dtype, sets, c) if taps else None,
    }


def _ssm(rng: random.Random, dtype: torch.dtype) -> Arguments:
    batch, k, c, n = rng.choice((1, 2, 3)), rng.choice((1, 2, 4)), rng.choice((1, 5, 16, 33)), rng.choice((1, 2, 16))
    tokens, walks = _walks(rng, k)
    sets, taps = rng.choice((1, k)), rng.choice((0, 0, 1, 4))
    return {
        "x": _randn(rng, dtype, batch, tokens, c),
        "z": rng.choice((None, _randn(rng, dtype, batch, tokens, c))),
        **_ssm_weights(rng, torch.float32 if rng.random() < 0.5 else dtype, k, sets, c, n, taps),
        "traversals": walks,
        "reverse": tuple(rng.random() < 0.5 for _ in range(sets)) if taps else (),
    }


def _run_ssm_directly(a: Arguments) -> Any:
    walks, reverse = flatten(a.pop("traversals")), list(a.pop("reverse"))
    return torch.ops.vision_ssm.selective_ssm(*a.values(), walks, reverse)


def _block(rng: random.Random, dtype: torch.dtype) -> Arguments:
    k, d, e, n = rng.choice((1, 2)), rng.choice((1, 8, 19)), rng.choice((1, 16, 33)), rng.choice((1, 4, 16))
    sets = rng.choice((1, k))
    return {
        "x": _randn(rng, torch.float32, rng.choice((1, 2, 3)), rng.choice((1, 3, 33, 70)), d),
        "norm_weight": _randn(rng, dtype, d),
        "norm_bias": rng.choice((None, _randn(rng, dtype, d))),
        "in_proj": _randn(rng, dtype, 2 * e, d),
        "out_proj": _randn(rng, dtype, d, e),
        "gamma": rng.choice((None, None, _randn(rng, dtype, d))),
        **_ssm_weights(rng, dtype, k, sets, e, n, rng.choice((1, 4))),
        "kind": rng.choice(("rms", "layer")),
        "walks_reversed": tuple(rng.random() < 0.5 for _ in range(k)),
        "looks_back": tuple(rng.random() < 0.5 for _ in range(sets)),
    }


def _block_of(a: Arguments) -> ops.VimBlock:
    norm = ops.NormWeights(a["kind"], 1e-5, a["norm_weight"], a["norm_bias"])
    ssm = ops.SsmWeights(*(a[name] for name in ops.SsmWeights._fields))
    return ops.VimBlock(norm, a["in_proj"], ssm, a["out_proj"], a["gamma"], 0.5, a["walks_reversed"], a["looks_back"])


def _column(rng: random.Random, dtype: torch.dtype) -> Arguments:
    return _block(rng, dtype) | {"start": rng.choice((0, 0, 1)), "stop": rng.choice((1, 2, 2))}


def _run_column(a: Arguments) -> Any:
    """In one call where the column says that it can; else, and for the reference, one block after the other."""
    blocks = [_block_of(a)] * 2
    run = None if torch.is_grad_enabled() else ops.VimColumn(blocks).segments(a["x"])
    if run is not None and 0 <= a["start"] <= a["stop"] <= len(blocks):
        return run(a["x"], a["start"], a["stop"])
    x = a["x"]
    for block in blocks[a["start"] : a["stop"]]:
        x = ops.vim_block(x, block)
    return x


def _mlp(rng: random.Random, dtype: torch.dtype) -> Arguments:
    c, h = rng.choice((1, 8, 19)), rng.choice((1, 16, 70))
    shape = rng.choice(((3, 7), (70,), (2, 3, 5)))
    return {
        "x": _randn(rng, dtype, *shape, c),
        "added": _randn(rng, dtype, *shape, c),
        "kind": rng.choice(("rms", "layer")),
        "norm_weight": _randn(rng, dtype, c),
        "norm_bias": rng.choice((None, _randn(rng, dtype, c))),
        "fc1_weight": _randn(rng, dtype, h, c),
        "fc1_bias": _randn(rng, dtype, h),
        "fc2_weight": _randn(rng, dtype, c, h),
        "fc2_bias": rng.choice((_randn(rng, dtype, c), None)),
    }


def _run_mlp(a: Arguments) -> Any:
    norm = ops.NormWeights(a["kind"], 1e-5, a["norm_weight"], a["norm_bias"])
    weights = ops.MlpWeights(norm, a["fc1_weight"], a["fc1_bias"], a["fc2_weight"], a["fc2_bias"])
    return ops.mlp_branch(a["x"], a["added"], weights)


def _embed(rng: random.Random, dtype: torch.dtype) -> Arguments:
    side, d, channels, classes = (
        rng.choice((1, 2, 4)),
        rng.choice((1, 8, 19)),
        rng.choice((1, 3)),
        rng.choice((0, 1, 2)),
    )
    height, width, stride = side + rng.randrange(9), side + rng.randrange(9), rng.randint(1, side)
    patches = ((height - side + stride - 1) // stride + 1) * ((width - side + stride - 1) // stride + 1)
    return {
        "images": _randn(rng, dtype, rng.choice((1, 2)), channels, height, width),
        "weight": _randn(rng, dtype, d, channels, side, side),
        "bias": rng.choice((None, _randn(rng, dtype, d))),
        "positions": _randn(rng, dtype, 1, patches + classes, d),
        "class_rows": _randn(rng, dtype, 1, classes, d) if classes else None,
        "places": tuple(sorted(rng.sample(range(patches + classes), classes))),
        "stride": stride,
    }


def _add_norm(rng: random.Random, dtype: torch.dtype) -> Arguments:
    c = rng.choice((1, 8, 19))
    tensors = {"x": _randn(rng, dtype, 3, 5, c), "added": _randn(rng, dtype, 3, 5, c)}
    return tensors | {"weight": _randn(rng, dtype, c), "bias": rng.choice((None, _randn(rng, dtype, c)))}


def _gla(rng: random.Random, dtype: torch.dtype) -> Arguments:
    batch, k, heads, n, c = (rng.choice(sizes) for sizes in ((1, 2), (1, 2, 4), (1, 3), (1, 5, 16), (1, 8, 33)))
    tokens, walks = _walks(rng, k)
    q, key = (_randn(rng, dtype, batch, tokens, heads * n) for _ in range(2))
    gates = -_randn(rng, torch.float32, batch, k, tokens, heads * n).abs()
    v = _randn(rng, dtype, batch, tokens, heads * c)
    return {
        "q": q,
        "k": key,
        "v": v,
        "log_gates": gates,
        "heads": heads,
        "traversals": walks,
        "merge": rng.random() < 0.7,
    }


OPERATORS = {
    "selective_scan": Operator(_scan, lambda a: ops.selective_scan(**a)),
    "causal_conv1d": Operator(_conv, lambda a: ops.causal_conv1d(**a)),
    "selective_ssm": Operator(_ssm, lambda a: ops.selective_ssm(**a)),
    "vim_block": Operator(_block, lambda a: ops.vim_block(a["x"], _block_of(a))),
    "VimColumn": Operator(_column, _run_column),
    "mlp_branch": Operator(_mlp, _run_mlp),
    "embed_patches": Operator(_embed, lambda a: ops.embed_patches(**a)),
    "add_norm": Operator(_add_norm, lambda a: ops.add_norm(**a)),
    "gla": Operator(_gla, lambda a: ops.gla(**a)),
    "torch.ops.selective_scan": Operator(_scan_directly, _run_scan_directly),
    "torch.ops.causal_conv1d": Operator(_conv, _run_conv_directly),
    "torch.ops.selective_ssm": Operator(_ssm, _run_ssm_directly, lambda a: ops.selective_ssm(**a)),
}


# ----------------------------------------------------------------------------------------------- and what is wrong


def _change(rng: random.Random, arguments: Arguments) -> str:
    """Change one argument; return which, and how."""
    name = rng.choice([k for k in arguments if k not in ("merge", "activation", "softplus", "save", "backend")])
    value = arguments[name]
    if isinstance(value, tuple | list) and not value:  # a change before this one has emptied it
        return f"{name} kept"
    if name == "traversals":
        index = rng.randrange(len(value))
        changed = _other_walk(rng, value[index])
        arguments[name] = rng.choice(
            ((*value[:index], changed, *value[index + 1 :]), value[1:], (*value, value[0]), ())
        )
    elif name == "walks":
        index = rng.randrange(len(value))
        words = list(value)
        words[index] += rng.choice((-(2**40), -1, 1, 7, 2**40))
        arguments[name] = rng.choice((words, words, words, value[:-1], value[:-9], []))
    elif isinstance(value, Tensor) or value is None:
        other = outcome_of(lambda: _other_tensor(rng, value))
        if other.error is not None:  # torch cannot, of a tensor that was changed before
            return f"{name} kept"
        arguments[name], how = other.value
        return f"{name} {how}"
    elif isinstance(value, tuple):
        arguments[name] = rng.choice((value[1:], (*value, *value[:1]), (), tuple(int(v) + 100 for v in value)))
    elif isinstance(value, str):
        arguments[name] = rng.choice(("batch", ""))
    else:
        arguments[name] = rng.choice((-1, 0, 3, 1000))
    return name


def _other_walk(rng: random.Random, walk: ops.Traversal) -> ops.Traversal:
    numbers = [walk.start, walk.inner_count, walk.inner_stride, walk.outer_stride, walk.length]
    numbers[rng.randrange(5)] += rng.choice((-(2**33), -1, 1, 5, 2**33))
    output = rng.choice((None, None, (0, 1, numbers[1]), (-1, 1, 1), (10**6, 0, 0)))
    return ops.Traversal(*numbers, reset=rng.random() < 0.3, output=output)


def _other_tensor(rng: random.Random, x: Tensor | None) -> tuple[Any, str]:
    kind = rng.choice(("none", "dtype", "dtype", "shape", "shape", "shape", "meta", "strides", "strides", "kind"))
    if x is None:
        return (torch.randn(rng.choice(((), (1,), (3,), (1, 4)))), "given") if kind != "none" else (None, "kept")
    if kind == "none":
        return None, kind
    if kind == "dtype":
        dtype = rng.choice((*FLOATS, *OTHERS))
        return x.to(dtype), f"in {dtype}"
    if kind == "meta":
        return x.to("meta"), kind
    if kind == "strides":
        return _restride(rng, x), kind
    if kind == "kind":
        return rng.choice((1.0, [1.0, 2.0], "x", x.to_sparse() if x.dtype == torch.float32 else 3)), kind
    return _reshaped(rng, x), "of another shape"


def _reshaped(rng: random.Random, x: Tensor) -> Tensor:
    shape = list(x.shape)
    how = rng.choice(("cut", "cut", "longer", "empty", "drop", "add", "one"))
    if how == "drop" and shape:
        return x[0] if shape[0] else x.sum(0)
    if how == "add":
        return x[None]
    if not shape:
        return x.expand(2)
    axis = rng.randrange(len(shape))
    if how == "longer":
        return torch.cat([x, x.narrow(axis, 0, min(1, shape[axis]))], axis)
    size = {"cut": max(shape[axis] - 1, 0), "empty": 0, "one": min(1, shape[axis])}.get(how, shape[axis])
    return x.narrow(axis, 0, size).clone()
