"""What the gate in front of the kernels lets through and what it refuses, and that every door has it.

Before there was one, these calls ended the process, or gave numbers from memory that was not the tensors'.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.ops.scan.cases import needs_kernel
from tests.ops.vim_block.cases import random_block, stream
from vision_ssm.errors import ShapeError
from vision_ssm.ops import (
    SsmWeights,
    Traversal,
    VimColumn,
    causal_conv1d,
    embed_patches,
    mlp_branch,
    selective_scan,
    selective_ssm,
    vim_block,
)
from vision_ssm.ops.conv import cpu as conv_cpu
from vision_ssm.ops.gate import memory
from vision_ssm.ops.mlp import cpu as mlp_cpu
from vision_ssm.ops.mlp.contract import MlpWeights, NormWeights
from vision_ssm.ops.patch_embed import cpu as embed_cpu
from vision_ssm.ops.ssm import cpu as ssm_cpu
from vision_ssm.ops.traversal import flatten
from vision_ssm.ops.vim_block import cpu as block_cpu

pytestmark = needs_kernel

Change = Callable[[dict[str, Any]], dict[str, Any]]
K, C, N, R, L = 2, 24, 4, 3, 33
WALKS = (Traversal.sequence(L), Traversal.sequence(L, reverse=True))


def freed() -> Tensor:
    x = torch.ones(2, 3)
    x.untyped_storage().resize_(0)
    return x


def shortened() -> Tensor:
    x = torch.ones(2, 3)
    x.untyped_storage().resize_(4)
    return x


class Holder(Tensor):
    """A tensor that has its values elsewhere, as quantised and distributed ones have."""

    @staticmethod
    def __new__(cls) -> Holder:
        made = Tensor._make_wrapper_subclass(cls, (2, 3), dtype=torch.float32)  # type: ignore[attr-defined]
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        return NotImplemented


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "expects a tensor for A, got None"),
        ([1.0], "expects a tensor for A, got list"),
        (torch.ones(2, 2), r"expects A \[2, 3\] in float32, got \[2, 2\] in float32"),
        (torch.ones(2, 3, dtype=torch.int32), r"in float32, got \[2, 3\] in int32"),
        (torch.ones(2, 3, device="meta"), "in the CPU's memory, got strided Tensor on meta"),
        (torch.ones(2, 3).to_sparse(), "in the CPU's memory, got sparse_coo Tensor on cpu"),
        (Holder(), "in the CPU's memory, got strided Holder on cpu"),
        (freed(), r"the memory of A \[2, 3\] was freed or shortened"),
        (shortened(), r"the memory of A \[2, 3\] was freed or shortened"),
    ],
)
def test_what_is_no_such_memory_is_refused(x: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        memory("A", x, (2, 3), torch.float32)


def test_a_subclass_with_memory_passes() -> None:
    x = torch.ones(2, 3).as_subclass(type("Named", (Tensor,), {}))
    assert memory("A", x, (2, 3), torch.float32).data_ptr() == x.data_ptr()


def test_a_view_that_is_yet_to_be_negated_is_negated() -> None:
    view = torch.complex(torch.zeros(2, 3), torch.ones(2, 3)).conj().imag
    assert view.is_neg()
    found = memory("A", view, (2, 3), torch.float32)
    assert not found.is_neg() and torch.equal(found, -torch.ones(2, 3))


def ssm_arguments() -> dict[str, Any]:
    return {
        "x": torch.randn(2, L, C),
        "z": torch.randn(2, L, C),
        "A_log": torch.rand(K, C, N),
        "D": torch.randn(K, C),
        "x_proj_weight": torch.randn(K, R + 2 * N, C) / 5,
        "dt_proj_weight": torch.randn(K, C, R) / 5,
        "dt_proj_bias": torch.randn(K, C),
        "conv_weight": torch.randn(K, C, 4),
        "conv_bias": torch.randn(K, C),
        "traversals": WALKS,
        "reverse": (False, True),
    }


def line(start: int, length: int) -> Traversal:
    return Traversal(start, max(length, 1), 1, 0, length)


def changed(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda arguments: arguments | {name: change(arguments[name])}


WRONG_SSM: dict[str, Change] = {
    "D cut": changed("D", lambda x: x[:, :-1]),
    "D of fewer directions": changed("D", lambda x: torch.cat([x, x])),
    "A_log cut": changed("A_log", lambda x: x[:, :, :-1]),
    "A_log of one direction": changed("A_log", lambda x: x[:1]),
    "A_log flat": changed("A_log", lambda x: x.flatten(1)),
    "x_proj cut": changed("x_proj_weight", lambda x: x[:, :-1]),
    "dt_proj of another rank": changed("dt_proj_weight", lambda x: x[..., :-1]),
    "dt_proj_bias cut": changed("dt_proj_bias", lambda x: x[:, :5]),
    "taps of fewer channels": changed("conv_weight", lambda x: x[:, :-1]),
    "no taps": changed("conv_weight", lambda x: x[..., :0]),
    "biases cut": changed("conv_bias", lambda x: x[..., :-1]),
    "z of fewer tokens": changed("z", lambda x: x[:, :-1]),
    "z flat": changed("z", lambda x: x.flatten()),
    "x flat": changed("x", lambda x: x.flatten(1)),
    "x of whole numbers": changed("x", Tensor.long),
    "x that is sparse": changed("x", Tensor.to_sparse),
    "weights of whole numbers": changed("A_log", Tensor.int),
    "a weight on meta": changed("D", lambda x: x.to("meta")),
    "x on meta": changed("x", lambda x: x.to("meta")),
    "no D": changed("D", lambda _: None),
    "no dt_proj_bias": changed("dt_proj_bias", lambda _: None),
    "A_log that is no tensor": changed("A_log", Tensor.tolist),
    "one walk less": changed("traversals", lambda walks: walks[:1]),
    "no walks": changed("traversals", lambda _: ()),
    "one way of looking less": changed("reverse", lambda reverse: reverse[:1]),
    "no way of looking": changed("reverse", lambda _: ()),
    "a walk that leaves": changed("traversals", lambda walks: (walks[0], Traversal.sequence(L + 1))),
    "a walk from before the start": changed("traversals", lambda w: (w[0], Traversal(-1, L, 1, 0, L))),
    "halves of which one is elsewhere": changed("traversals", lambda _: (line(0, 16), line(2**33, L - 16))),
    "halves of which one ends before it begins": changed("traversals", lambda _: (line(0, -5), line(0, L + 5))),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("change", WRONG_SSM.values(), ids=WRONG_SSM)
def test_a_wrong_ssm_is_refused_by_either_way(change: Change, backend: str) -> None:
    with (
        mock.patch.dict(os.environ, {"VISION_SSM_BACKEND": backend}),
        torch.no_grad(),
        pytest.raises(ShapeError),
    ):
        selective_ssm(**change(ssm_arguments()))


@pytest.mark.parametrize("name", [name for name in WRONG_SSM if name not in ("x that is sparse", "x on meta")])
def test_the_registered_ssm_and_its_kernel_refuse_it_too(name: str) -> None:
    arguments = WRONG_SSM[name](ssm_arguments())
    walks, reverse = arguments.pop("traversals"), arguments.pop("reverse")
    # Of torch's schema are RuntimeError and TypeError.
    with torch.no_grad(), pytest.raises((ShapeError, RuntimeError, TypeError)):
        torch.ops.vision_ssm.selective_ssm(*arguments.values(), flatten(walks), list(reverse))
    if "walk" in name or "halves" in name or "no tensor" in name:  # walks were checked before
        return
    x, z, *weights = arguments.values()
    with pytest.raises((ShapeError, AttributeError, IndexError)):
        ssm_cpu.forward(x, z, SsmWeights(*weights), walks, reverse)


RIGHT_SSM: dict[str, Change] = {
    "sets shared unevenly": changed("D", lambda x: x[:1]),
    "no biases of the convolution": changed("conv_bias", lambda _: None),
    "a gate in another dtype": changed("z", Tensor.double),
    "a weight in another dtype": changed("x_proj_weight", Tensor.double),
    "biases without taps": changed("conv_weight", lambda _: None),
    "a negated weight": changed("D", lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag),
    "an expanded gate": changed("z", lambda x: x[:1, :1].expand_as(x)),
}


@pytest.mark.parametrize("change", RIGHT_SSM.values(), ids=RIGHT_SSM)
def test_what_the_kernel_cannot_be_told_is_right_all_the_same(change: Change) -> None:
    arguments = change(ssm_arguments())
    with torch.no_grad():
        found = selective_ssm(**arguments)
        with mock.patch.dict(os.environ, {"VISION_SSM_BACKEND": "reference"}):
            torch.testing.assert_close(found, selective_ssm(**arguments), rtol=1e-4, atol=1e-4)


def scan_arguments() -> list[Any]:
    u, b = torch.randn(1, K, L, C), torch.randn(1, K, L, N)
    return [u, u, -torch.rand(K, C, N), b, b, torch.ones(K, C), None, None, flatten(WALKS), True, True]


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, lambda u: u.double()),
        (0, lambda u: u[0]),
        (2, lambda A: A.bfloat16()),
        (2, lambda A: A[:1]),
        (3, lambda B: B[:, :, :-1]),
        (4, lambda C: C.bfloat16()),
        (5, lambda D: D[:1]),
        (5, lambda D: D.to("meta")),
        (8, lambda words: words[:-1]),
        (8, lambda words: words[:-9]),
        (8, lambda words: []),
        (8, lambda words: [words[0] + 2**40, *words[1:]]),
    ],
)
def test_the_registered_scan_refuses_what_only_the_public_one_converts(at: int, change: Callable[[Any], Any]) -> None:
    arguments = scan_arguments()
    arguments[at] = change(arguments[at])
    with pytest.raises(ShapeError):
        torch.ops.vision_ssm.selective_scan(*arguments, False, "auto")


@pytest.mark.parametrize(
    ("change", "dtype"), [(lambda s: s[:-1], torch.float32), (lambda s: s, torch.bfloat16), (Tensor.bfloat16, None)]
)
def test_the_backward_scan_refuses_states_and_gradients_of_other_calls(
    change: Callable[[Tensor], Tensor], dtype: torch.dtype | None
) -> None:
    arguments = scan_arguments()
    y, states = torch.ops.vision_ssm.selective_scan(*arguments, True, "cpu")
    with pytest.raises(ShapeError):
        torch.ops.vision_ssm.selective_scan_backward(y.to(dtype or y.dtype), change(states), *arguments, "cpu")


@pytest.mark.parametrize("name", ["u", "delta", "B", "z"])
def test_a_scan_of_whole_numbers_is_refused(name: str) -> None:
    u, b = torch.ones(1, 1, L, C), torch.ones(1, 1, L, N)
    given = {"u": u, "delta": u, "A": -torch.rand(1, C, N), "B": b, "C": b, "z": u[:, 0]}
    with pytest.raises(ShapeError, match=f"expects {name} in float32, .* got int64: convert it"):
        selective_scan(**given | {name: given[name].long()})


@pytest.mark.parametrize(
    "change",
    [
        changed("weight", lambda w: w[..., :0]),
        changed("weight", lambda w: w.to("meta")),
        changed("weight", lambda w: w[:0]),
        changed("bias", lambda b: b[:, :-1]),
        changed("x", Tensor.long),
        changed("reverse", lambda _: ()),
    ],
)
def test_a_wrong_convolution_is_refused(change: Change) -> None:
    right = {"x": torch.randn(1, L, C), "weight": torch.randn(1, C, 4), "bias": torch.randn(1, C), "reverse": (False,)}
    with pytest.raises(ShapeError):
        causal_conv1d(**change(right))


def test_the_kernel_of_the_convolution_takes_few_taps() -> None:
    with pytest.raises(ShapeError, match=r"weight \[1, C, 1 to 8\], got .* \[1, 24, 9\]"):
        conv_cpu.forward(torch.randn(1, L, C), torch.randn(1, C, 9), torch.randn(1, C), (False,), True)


def test_blocks_of_a_column_that_are_not_there_are_refused() -> None:
    block, x = random_block("bidirectional", width=16, inner=16, states=2), stream(1, 9, 16)
    with torch.no_grad():
        run = VimColumn([block, block]).segments(x)
        assert run is not None
        for start, stop in ((0, 3), (-1, 1), (2, 1)):
            with pytest.raises(ShapeError, match="are none of the 2 of the column"):
                run(x, start, stop)
        for other in (stream(1, 10, 16), stream(1, 9, 17), x.double(), x.to("meta")):
            with pytest.raises(ShapeError, match="the kernel expects stream"):
                run(other, 0, 2)


def test_a_column_whose_weights_were_replaced_reads_neither() -> None:
    block, x = random_block("bidirectional", width=16, inner=16, states=2), stream(1, 9, 16)
    with torch.no_grad():
        run = VimColumn([block]).segments(x)
        assert run is not None
        block.in_proj.data = torch.zeros_like(block.in_proj)
        with pytest.raises(ShapeError, match="weights were replaced"):
            run(x, 0, 1)


def test_a_column_sees_that_a_weight_is_to_be_negated() -> None:
    block, x = random_block("bidirectional", width=16, inner=16, states=2), stream(1, 9, 16)
    column = VimColumn([block])
    with torch.no_grad():
        assert column.segments(x) is not None
        block.in_proj.data = torch._neg_view(block.in_proj.data)
        assert column.segments(x) is None


def test_blocks_that_do_not_follow_each_other_are_not_described() -> None:
    block, x = random_block("bidirectional", width=16, inner=16, states=2), stream(1, 9, 16)
    other = block._replace(ssm=block.ssm._replace(D=block.ssm.D[:, :-1]))
    with pytest.raises(ShapeError, match="must have the same shapes"):
        block_cpu.describe(x, [block, other], False)
    with pytest.raises(ShapeError, match="D must be"):
        block_cpu.describe(x, [other], False)


def test_what_a_hook_makes_of_saved_tensors_is_looked_at() -> None:
    """Training keeps float32; read as that, what was stored in half of the memory would be read beyond its end."""
    block = random_block("bidirectional", width=16, inner=16, states=2)
    x = stream(1, 9, 16).requires_grad_()
    halved = torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t)
    with halved:
        y = vim_block(x, block)
    with pytest.raises(ShapeError, match="in bfloat16"):
        y.sum().backward()


def test_kernels_called_by_themselves_refuse_what_does_not_fit() -> None:
    x, norm = torch.randn(5, 16), NormWeights("rms", 1e-5, torch.ones(16))
    weights = MlpWeights(norm, torch.ones(8, 16), torch.ones(8), torch.ones(16, 8), torch.ones(16))
    for wrong in (
        weights._replace(fc1_bias=None),
        weights._replace(fc2_weight=torch.ones(16, 7)),
        weights._replace(fc2_bias=torch.ones(16, dtype=torch.bfloat16)),
        weights._replace(norm=norm._replace(weight=torch.ones(15))),
    ):
        with pytest.raises(ShapeError, match="the kernel expects"):
            mlp_cpu.forward(x, x, wrong)
    images, patches, positions = torch.randn(1, 3, 8, 8), torch.ones(4, 3, 4, 4), torch.ones(1, 4, 4)
    for arguments in (
        (images, patches, None, positions[:, :3], None, (), 4),
        (images, patches.double(), None, positions, None, (), 4),
        (images, patches, torch.ones(3), positions, None, (), 4),
        (images, patches, None, torch.ones(1, 5, 4), None, (0,), 4),
        (images, patches, None, torch.ones(1, 5, 4), torch.ones(1, 1, 4), (5,), 4),
        (images[..., :3], patches, None, positions, None, (), 4),
        (images, patches, None, positions, None, (), 0),
    ):
        with pytest.raises(ShapeError):
            embed_cpu.forward(*arguments)  # type: ignore[arg-type]


def test_public_functions_name_what_is_elsewhere_or_no_number() -> None:
    x, norm = torch.randn(5, 16), NormWeights("rms", 1e-5, torch.ones(16))
    weights = MlpWeights(norm, torch.ones(8, 16), torch.ones(8), torch.ones(16, 8, device="meta"), torch.ones(16))
    with pytest.raises(ShapeError, match="mlp_branch expects all tensors on one device, got fc2_weight on meta"):
        mlp_branch(x, x, weights)
    with pytest.raises(ShapeError, match=r"embed_patches expects images in float32, .* got uint8"):
        embed_patches(torch.ones(1, 3, 8, 8).byte(), torch.ones(4, 3, 4, 4), None, torch.ones(1, 4, 4), stride=4)
    block = random_block("bidirectional", width=16, inner=16, states=2)
    with pytest.raises(ShapeError, match="vim_block expects all tensors on one device, got in_proj on meta"):
        vim_block(stream(1, 9, 16), block._replace(in_proj=block.in_proj.to("meta")))
