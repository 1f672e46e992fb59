"""The registered operator: what torch's own tools demand of it, and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.scan.cases import NAMES, both_ways, cross, device_of, needs_gpu, needs_kernel, placed, random_case
from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import Traversal, causal_conv1d, selective_scan
from vision_ssm.ops.traversal import flatten

BACKENDS = [
    *("reference", "chunked"),
    pytest.param("cpu", marks=needs_kernel),
    pytest.param("triton", marks=needs_gpu),
]


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Tracing replaces torch.empty itself: leave memory as it is here."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("absent", "merge", "walks"), [((), True, both_ways(6)), (("D", "z", "delta_bias"), False, cross(2, 3))]
)
def test_opcheck(backend: str, absent: tuple[str, ...], merge: bool, walks: tuple[Traversal, ...]) -> None:
    case = random_case(6, walks, batch=2, channels=3, states=2, absent=absent).to(torch.float32)
    here = (placed(case.tensors[name], device_of(backend)) for name in NAMES)
    tensors = [None if x is None else x.clone().requires_grad_() for x in here]
    args = (*tensors, flatten(walks), True, merge, True, backend)
    library.opcheck(torch.ops.vision_ssm.selective_scan.default, args)


class Mixer(nn.Module):
    """A scan as a network has it: projections, a convolution and the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8 + 2 * 4)
        self.conv = nn.Parameter(torch.randn(2, 8, 4))
        self.A = nn.Parameter(-torch.rand(2, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        u = causal_conv1d(x, self.conv, reverse=(False, True))
        delta, B, C = self.project(u).split([8, 4, 4], -1)
        walks = (Traversal.sequence(tokens), Traversal.sequence(tokens, reverse=True))
        return selective_scan(u, delta, self.A, B, C, z=x, traversals=walks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    torch.manual_seed(0)
    model, x = Mixer(), torch.randn(2, 70, 8)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tokens in (70, 33):
        eager, found = model(x[:, :tokens]), compiled(x[:, :tokens])
        torch.testing.assert_close(found, eager)
        parameters = list(model.parameters())
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), parameters), torch.autograd.grad(eager.square().sum(), parameters)
        )


def test_compiles_with_inductor() -> None:
    torch.manual_seed(0)
    model, x = Mixer(), torch.randn(2, 40, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_exports_with_dynamic_batch_and_length() -> None:
    torch.manual_seed(0)
    model = Mixer().eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=4096)}}
    program = torch.export.export(model, (torch.randn(2, 70, 8),), dynamic_shapes=shapes)
    other = torch.randn(3, 131, 8)
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_size_tokens_by_channels_by_states_is_ever_stored(backend: str) -> None:
    tokens, channels, states = 2048, 24, 16
    if backend == "reference":
        tokens = 256
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(x, Tensor) and x.untyped_storage().size():
                    largest = max(largest, x.numel())
            return result

    case = random_case(tokens, both_ways(tokens), batch=1, channels=channels, states=states).to(torch.float32)
    with Watch():
        case.run(backend)
    assert largest <= 2 * tokens * channels  # one input per direction; a quarter of that in saved states


def test_without_gradients_no_states_are_saved() -> None:
    case = random_case(130, both_ways(130)).to(torch.float32)
    args = [case.tensors[name] for name in NAMES]
    _, states = torch.ops.vision_ssm.selective_scan(*args, flatten(case.traversals), True, True, False, "auto")
    assert states.numel() == 0
    _, states = torch.ops.vision_ssm.selective_scan(*args, flatten(case.traversals), True, True, True, "auto")
    assert states.shape == (2 * 2 * 5 * 16 * 20,)


def test_an_operator_call_that_saved_nothing_has_no_gradient() -> None:
    case = random_case(5, both_ways(5)).to(torch.float32)
    args = [None if x is None else x.clone().requires_grad_() for x in (case.tensors[name] for name in NAMES)]
    y, _ = torch.ops.vision_ssm.selective_scan(*args, flatten(case.traversals), True, True, False, "auto")
    with pytest.raises(BackendError, match="save_states=True"):
        y.sum().backward()


def test_a_gradient_of_a_gradient_is_refused_rather_than_wrong() -> None:
    case = random_case(5, both_ways(5)).to(torch.float32)
    u, x = case.tensors["u"], torch.randn(2, 5, 3, requires_grad=True)
    assert u is not None
    u = u.clone().requires_grad_()
    scanned = selective_scan(**{**case.tensors, "u": u}, traversals=case.traversals)
    for leaf, y in ((u, scanned), (x, causal_conv1d(x, torch.randn(1, 3, 4)))):
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        with pytest.raises(BackendError, match="differentiated once"):
            torch.autograd.grad(gradient.sum(), leaf)


def test_shape_errors_name_the_tensor_and_the_expected_shape() -> None:
    case = random_case(10, both_ways(10), channels=3, states=4).to(torch.float32)

    def run(**changes: Tensor) -> Tensor:
        return selective_scan(**{**case.tensors, **changes}, traversals=case.traversals)  # type: ignore[arg-type]

    with pytest.raises(ShapeError, match=r"delta must be \[2, 2 or 1, 10, 3\].*got \[2, 3, 10, 3\]"):
        run(delta=torch.zeros(2, 3, 10, 3))
    with pytest.raises(ShapeError, match=r"C must be \[2, 2 or 1, 10, 4\].*got \[2, 2, 9, 4\]"):
        run(C=torch.zeros(2, 2, 9, 4))
    with pytest.raises(ShapeError, match=r"z must be \[2, 10, 3\], got \[2, 2, 10, 3\]"):
        run(z=torch.zeros(2, 2, 10, 3))
    with pytest.raises(ShapeError, match=r"expects u \[B, K or 1, L, C\].*got u \[2, 10, 3\]"):
        run(u=torch.zeros(2, 10, 3))
    with pytest.raises(ShapeError, match=r"D must be \[2 or 1, 3\], got \[4\]"):
        run(D=torch.zeros(4))
    with pytest.raises(ShapeError, match="A has 1 directions, but 2 traversals came"):
        run(A=-torch.ones(1, 3, 4))
    with pytest.raises(ShapeError, match="at least one state"):
        run(A=torch.zeros(2, 3, 0), B=torch.zeros(2, 2, 10, 0), C=torch.zeros(2, 2, 10, 0))
    with pytest.raises(ShapeError, match=r"visits tokens 0\.\.10"):
        selective_scan(**case.tensors, traversals=both_ways(11))  # type: ignore[arg-type]
