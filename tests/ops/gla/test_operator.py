"""The registered operator: what torch's own tools demand of it, and its errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn

from tests.ops.gla.cases import random_case
from tests.ops.scan.cases import both_ways, cross, needs_kernel
from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import Traversal, gla
from vision_ssm.ops.gla.contract import GlaCall
from vision_ssm.ops.traversal import flatten

BACKENDS = ["reference", "chunked", pytest.param("cpu", marks=needs_kernel)]


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Tracing replaces torch.empty itself: leave memory as it is here."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("merge", "walks"), [(True, both_ways(6)), (False, cross(2, 3)[2:])])
def test_opcheck(backend: str, merge: bool, walks: tuple[Traversal, ...]) -> None:
    tensors = [x.clone().requires_grad_() for x in random_case(6, walks, keys=2, values=3).to(torch.float32).tensors]
    library.opcheck(torch.ops.vision_ssm.gla.default, (*tensors, 2, 0.5, flatten(walks), merge, backend))


class Mixer(nn.Module):
    """Attention as a network has it, with a projection to everything."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 4 + 4 + 8 + 2 * 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        q, k, v, gates = self.project(x).split([4, 4, 8, 8], -1)
        gates = nn.functional.logsigmoid(gates).unflatten(-1, (2, 4)).movedim(2, 1)
        walks = (Traversal.sequence(tokens), Traversal.sequence(tokens, reverse=True))
        return gla(q, k, v, gates, heads=2, traversals=walks)


def test_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    model, x = Mixer(), torch.randn(2, 70, 8)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (70, 33):
        eager, found = model(x[:, :tokens]), compiled(x[:, :tokens])
        torch.testing.assert_close(found, eager)
        parameters = list(model.parameters())
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), parameters), torch.autograd.grad(eager.square().sum(), parameters)
        )


def test_exports_with_dynamic_batch_and_length() -> None:
    torch.manual_seed(0)
    model = Mixer().eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=4096)}}
    program = torch.export.export(model, (torch.randn(2, 70, 8),), dynamic_shapes=shapes)
    other = torch.randn(3, 131, 8)
    torch.testing.assert_close(program.module()(other), model(other))


def test_a_gradient_of_a_gradient_is_refused_rather_than_wrong() -> None:
    case = random_case(5, both_ways(5)).to(torch.float32)
    q = case.tensors[0].clone().requires_grad_()
    y = case.call(q, *case.tensors[1:])
    (gradient,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises(BackendError, match="differentiated once"):
        torch.autograd.grad(gradient.sum(), q)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.randn(2, 10, 9)}, r"q must have as many channels for each of 2 heads, got \[2, 10, 9\]"),
        ({"q": torch.randn(10, 16)}, r"gla expects q \[B, L, H N\] and v \[B, L, H V\], got q \[10, 16\]"),
        ({"k": torch.randn(2, 9, 16)}, r"k must be \[2, 10, 16\] to fit q .* got \[2, 9, 16\]"),
        ({"v": torch.randn(1, 10, 24)}, r"v must be \[2, 10, 24\] to fit q"),
        ({"log_gates": torch.randn(2, 1, 10, 16)}, r"log_gates must be \[2, 2, 10, 16\] .* 2 traversals, got"),
        ({"heads": 0}, "gla expects heads as a positive whole number, got 0"),
        ({"heads": 2.0}, r"gla expects heads as a positive whole number, got 2\.0"),
        ({"traversals": ()}, "gla needs at least one traversal, got none"),
        ({"traversals": both_ways(11)}, "traversal 0 visits tokens 0..10, but the tensors hold tokens 0..9"),
        ({"k": torch.ones(2, 10, 16).long()}, "gla expects k in float32, .* got int64: convert it"),
        ({"v": torch.randn(2, 10, 24, device="meta")}, "on one device, got v on meta"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    case = random_case(10, both_ways(10)).to(torch.float32)
    right = dict(zip(("q", "k", "v", "log_gates"), case.tensors, strict=True))
    with pytest.raises(ShapeError, match=message):
        gla(**{**right, "heads": 2, "traversals": case.traversals, **change})


def test_mixed_dtypes_are_promoted_and_the_registered_operator_takes_none() -> None:
    case = random_case(10, both_ways(10)).to(torch.float32)
    q, k, v, gates = case.tensors
    y = case.call(q.bfloat16(), k, v.half(), gates.double())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), case.call(*case.tensors), rtol=0.02, atol=0.02)
    for wrong in ((q.bfloat16(), k, v, gates), (q, k, v, gates.bfloat16())):
        with pytest.raises(ShapeError, match=r"vision_ssm::gla takes q, k and v of one dtype"):
            torch.ops.vision_ssm.gla(*wrong, 2, 1.0, flatten(case.traversals), True, "auto")
    with pytest.raises(ShapeError, match=r"vision_ssm::gla_backward takes a gradient \[2, 10, 24\]"):
        torch.ops.vision_ssm.gla_backward(v[:, :-1], q, k, v, gates, 2, 1.0, flatten(case.traversals), True, "auto")


@needs_kernel
def test_the_kernel_called_by_itself_refuses_what_does_not_fit() -> None:
    from vision_ssm.ops.gla import cpu

    case = random_case(10, both_ways(10)).to(torch.float32)
    q, k, v, gates = case.tensors
    call = GlaCall(q, k, v, gates, 2, 1.0, case.traversals, True)
    for wrong in (
        replace(call, k=k[:, :-1]),
        replace(call, v=v.double()),
        replace(call, log_gates=gates[:, :1]),
        replace(call, log_gates=gates.bfloat16()),
        replace(call, heads=3),
        replace(call, traversals=case.traversals[:1]),
    ):
        with pytest.raises(ShapeError):
            cpu.forward(wrong)
    with pytest.raises(ShapeError, match="the kernel expects grad"):
        cpu.backward(call, v[:, :-1])
