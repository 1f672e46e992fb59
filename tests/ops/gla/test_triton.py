"""The Triton kernels in Triton's interpreter, small shapes; on a GPU test_backends.py runs its own, larger ones."""

from __future__ import annotations

import pytest
import torch

from tests.ops.gla.cases import Case, check_against_reference, random_case
from tests.ops.scan.cases import both_ways, each_line, needs_triton, use
from vision_ssm.errors import BackendError
from vision_ssm.ops import Traversal

pytestmark = needs_triton


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)


@pytest.mark.parametrize("tokens", [1, 16, 33])
def test_lengths(tokens: int) -> None:
    walks = both_ways(tokens)[:1] if tokens == 1 else both_ways(tokens)
    case = random_case(tokens, walks, batch=1, heads=1, keys=5, values=7, merge=tokens != 16)
    check_against_reference(case, torch.float32, "triton")


def test_half_precision() -> None:
    case = random_case(20, both_ways(20)[1:], batch=1, heads=1, keys=16, values=18)
    check_against_reference(case, torch.bfloat16, "triton")


def test_runs_that_write_elsewhere_tokens_left_out_and_strides() -> None:
    walks = (each_line(2, 3)[1], Traversal(1, 2, 2, 0, 2), Traversal(0, 1, 1, 0, 0))
    check_against_reference(random_case(6, walks, batch=1, heads=1, keys=3, values=4), torch.float32, "triton")
    case = random_case(3, both_ways(3)[1:], batch=2, heads=2, keys=3, values=4)
    check_against_reference(case, torch.float32, "triton")
    spread = tuple(torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in case.to(torch.float32).tensors)
    found = Case(spread, case.heads, case.traversals).run("triton")
    for name, value in case.to(torch.float32).run("triton").items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("least", [-1e-6, -1e30])
def test_gates_of_every_size_side_by_side(least: float) -> None:
    case = random_case(24, both_ways(24)[:1], batch=1, heads=1, keys=4, values=4)
    gates = case.tensors[3].clone()
    gates[:, :, 3::5] = least
    check_against_reference(Case((*case.tensors[:3], gates), 1, case.traversals), torch.float32, "triton")


def test_heads_that_do_not_fit_are_refused() -> None:
    case = random_case(4, both_ways(4), heads=1, keys=129).to(torch.float32)
    with pytest.raises(BackendError, match=r"up to 128 key and value channels and .* got 129, 12 and 4"):
        case.run("triton")
