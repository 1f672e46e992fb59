"""The definition of correct against mathematics: closed forms, symmetries and numerical derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.scan.cases import NAMES, both_ways, cross, each_line, random_case
from vision_ssm.ops import Traversal, selective_scan

CLOSED_FORM_BACKENDS = ["reference", "chunked"]


def scan(backend: str, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **options: object) -> Tensor:
    return selective_scan(u, delta, A, B, C, backend=backend, delta_softplus=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
def test_constant_parameters_give_a_convolution_with_a_geometric_kernel(backend: str) -> None:
    tokens, a, b, c, delta = 150, -0.3, 0.7, 1.3, 0.2
    u = torch.randn(1, 1, tokens, 1, dtype=torch.float64)
    one = torch.ones(1, 1, tokens, 1, dtype=torch.float64)
    y = scan(backend, u, delta * one, torch.full((1, 1, 1), a, dtype=torch.float64), b * one, c * one)
    kernel = c * delta * b * torch.exp(delta * a * torch.arange(tokens, dtype=torch.float64))
    expected = torch.stack([(kernel[: t + 1].flip(0) * u[0, 0, : t + 1, 0]).sum() for t in range(tokens)])
    torch.testing.assert_close(y[0, :, 0], expected)


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
def test_without_decay_the_scan_is_a_running_sum(backend: str) -> None:
    u = torch.randn(2, 1, 100, 3, dtype=torch.float64)
    one = torch.ones(2, 1, 100, 1, dtype=torch.float64)
    y = scan(backend, u, torch.ones_like(u), torch.zeros(1, 3, 1, dtype=torch.float64), one, one)
    torch.testing.assert_close(y, u[:, 0].cumsum(1))


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
def test_infinite_decay_forgets_everything(backend: str) -> None:
    case = random_case(70, both_ways(70), absent=("z", "D"))
    u, delta, B, C, bias = (case.tensors[name] for name in ("u", "delta", "B", "C", "delta_bias"))
    assert u is not None and delta is not None and B is not None and C is not None and bias is not None
    A = torch.full((2, 20, 16), -1e9, dtype=torch.float64)
    y = selective_scan(u, delta, A, B, C, delta_bias=bias, traversals=case.traversals, merge=False, backend=backend)
    step = torch.nn.functional.softplus(delta + bias[None, :, None])
    torch.testing.assert_close(y, step * u * (B * C).sum(-1, keepdim=True))


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
def test_scanning_backwards_is_scanning_the_flipped_sequence(backend: str) -> None:
    tokens = 90
    case = random_case(tokens, (Traversal.sequence(tokens, reverse=True),))
    flipped = {
        n: x.flip(-2) if x is not None and n not in ("A", "D", "delta_bias") else x for n, x in case.tensors.items()
    }
    backwards = selective_scan(**case.tensors, traversals=case.traversals, backend=backend)  # type: ignore[arg-type]
    forwards = selective_scan(**flipped, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(backwards, forwards.flip(1))


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
def test_columns_are_rows_of_the_transposed_map(backend: str) -> None:
    height, width = 5, 9
    case = random_case(height * width, (Traversal.columns(height, width),), absent=("z",))

    def transposed(x: Tensor) -> Tensor:
        return x.unflatten(2, (height, width)).transpose(2, 3).flatten(2, 3)

    turned = {n: transposed(x) if x is not None and x.dim() == 4 else x for n, x in case.tensors.items()}
    by_columns = selective_scan(**case.tensors, traversals=case.traversals, backend=backend)  # type: ignore[arg-type]
    by_rows = selective_scan(**turned, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(by_columns, by_rows.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2))


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
def test_gate_and_skip_stand_outside_the_recurrence(backend: str) -> None:
    case = random_case(66, both_ways(66))
    bare = random_case(66, both_ways(66), absent=("z", "D"))
    u, D, z = (case.tensors[name] for name in ("u", "D", "z"))
    assert u is not None and D is not None and z is not None
    full = selective_scan(**case.tensors, traversals=case.traversals, backend=backend)  # type: ignore[arg-type]
    core = selective_scan(**bare.tensors, traversals=bare.traversals, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(full, (core + (D[None, :, None] * u).sum(1)) * torch.nn.functional.silu(z))


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
@pytest.mark.parametrize("shared", [(), ("u", "delta"), ("B", "C")])
@pytest.mark.parametrize("merge", [True, False])
def test_gradients_are_the_numerical_derivatives(backend: str, shared: tuple[str, ...], merge: bool) -> None:
    case = random_case(6, cross(2, 3), batch=1, channels=2, states=2, shared=shared)
    tensors = tuple(x.clone().requires_grad_() for x in (case.tensors[name] for name in NAMES) if x is not None)

    def run(*inputs: Tensor) -> Tensor:
        return selective_scan(*inputs, traversals=case.traversals, merge=merge, backend=backend)

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("backend", CLOSED_FORM_BACKENDS)
def test_each_row_and_column_is_a_sequence_of_its_own(backend: str) -> None:
    height, width = 3, 5
    case = random_case(height * width, each_line(height, width), merge=False)
    found = case.run(backend)["y"].unflatten(2, (height, width))

    def lines(name: str, k: int, columns: bool, flip: bool) -> Tensor | None:
        x = case.tensors[name]
        if x is None or name in ("A", "D", "delta_bias"):
            return None if x is None else x[k : k + 1]
        x = (x if name == "z" else x[:, k]).unflatten(1, (height, width))
        x = (x.transpose(1, 2) if columns else x).flatten(0, 1)
        if name == "z":  # read where the output is written
            return x
        return (x.flip(1) if flip else x)[:, None]

    for k, (columns, flip) in enumerate([(False, False), (False, True), (True, False), (True, True)]):
        apart = {name: lines(name, k, columns, flip) for name in NAMES}
        expected = selective_scan(**apart, backend="reference")  # type: ignore[arg-type]
        expected = expected.unflatten(0, (2, width if columns else height))
        torch.testing.assert_close(found[:, k], expected.transpose(1, 2) if columns else expected)
