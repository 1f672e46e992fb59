"""The definition against closed forms, symmetries and numerical derivatives; the chunked form too."""

from __future__ import annotations

import pytest
import torch

from tests.ops.gla.cases import random_case
from tests.ops.scan.cases import both_ways, cross, each_line
from vision_ssm.ops import Traversal, gla

pytestmark = pytest.mark.parametrize("backend", ["reference", "chunked"])


def test_open_gates_are_a_running_sum(backend: str) -> None:
    q, k, v, _ = random_case(70, both_ways(70)).tensors
    y = gla(q, k, v, torch.zeros(2, 1, 70, 16, dtype=q.dtype), heads=2, scale=1.0, backend=backend)
    q, k, v = (x.unflatten(-1, (2, -1)) for x in (q, k, v))
    weights = torch.einsum("bihn,bjhn->bhij", q, k).tril()
    torch.testing.assert_close(y, torch.einsum("bhij,bjhc->bihc", weights, v).flatten(-2))


def test_constant_gates_are_a_geometric_series(backend: str) -> None:
    gate, length = -0.05, 100
    one = torch.ones(1, length, 4, dtype=torch.float64)
    y = gla(one, one, one, torch.full((1, 1, length, 4), gate, dtype=torch.float64), scale=1.0, backend=backend)
    keep = torch.tensor(gate, dtype=torch.float64).exp()
    series = (1 - keep ** torch.arange(1, length + 1)) / (1 - keep)
    torch.testing.assert_close(y, (4 * series)[None, :, None].expand(1, length, 4))


def test_attention_by_hand(backend: str) -> None:
    """The quadratic form: weights q[i] · (k[j] ⊙ decay from j to i), here as sums of the gates between."""
    case = random_case(40, both_ways(40))
    q, k, v, g = case.tensors
    total = g.cumsum(2).unflatten(-1, (2, -1))
    q, k, v = (x.unflatten(-1, (2, -1)) for x in (q, k, v))
    decay = (total[:, 0, :, None] - total[:, 0, None]).exp()
    lower = torch.ones(40, 40, dtype=torch.float64).tril()
    weights = torch.einsum("bihn,bjhn,bijhn->bhij", q, k, decay) * lower
    expected = torch.einsum("bhij,bjhc->bihc", weights, v).flatten(-2) * 8**-0.5
    torch.testing.assert_close(gla(*case.tensors[:3], g[:, :1], heads=2, backend=backend), expected)


def test_walking_backwards_is_walking_the_flipped_sequence(backend: str) -> None:
    *qkv, gates = random_case(90, (Traversal.sequence(90, reverse=True),)).tensors
    backwards = gla(*qkv, gates, heads=2, traversals=[Traversal.sequence(90, reverse=True)], backend=backend)
    forwards = gla(*(x.flip(1) for x in qkv), gates.flip(2), heads=2, backend=backend)
    torch.testing.assert_close(backwards, forwards.flip(1))


def test_each_row_is_a_sequence_of_its_own(backend: str) -> None:
    case = random_case(3 * 5, each_line(3, 5)[:1])
    found = case.call(*case.tensors, backend=backend)
    *qkv, gates = case.tensors
    rows = [x.unflatten(1, (3, 5)).flatten(0, 1) for x in (*qkv, gates[:, 0])]
    apart = gla(*rows[:3], rows[3][:, None], heads=2, backend=backend)
    torch.testing.assert_close(found, apart.unflatten(0, (2, 3)).flatten(1, 2))


def test_scale_and_directions_add_up(backend: str) -> None:
    case = random_case(66, both_ways(66), merge=False)
    apart = case.call(*case.tensors, backend=backend)
    half = gla(*case.tensors, heads=2, traversals=case.traversals, scale=0.5, backend=backend)
    torch.testing.assert_close(half, 0.5 * 8**0.5 * apart.sum(1))


@pytest.mark.parametrize(("merge", "walks"), [(False, cross(2, 3)[:3]), (True, each_line(2, 3)[1:3])])
def test_gradients_are_the_numerical_derivatives(backend: str, merge: bool, walks: tuple[Traversal, ...]) -> None:
    case = random_case(6, walks, batch=1, heads=1, keys=2, values=3, merge=merge)
    tensors = tuple(x.clone().requires_grad_() for x in case.tensors)
    assert torch.autograd.gradcheck(lambda *x: case.call(*x, backend=backend), tensors)
