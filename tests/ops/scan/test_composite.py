"""The scan in torch's operations, as transforms see it: the rule of every backend, for every kind of walk and dtype."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from tests.ops.scan.cases import atrous, both_ways, check_against_reference, cross, each_line, random_case
from vision_ssm.errors import BackendError, ShapeError
from vision_ssm.ops import Traversal, selective_scan

CASES = {
    "both ways": random_case(65, both_ways(65)),
    "one token": random_case(1, both_ways(1)),
    "none": random_case(0, both_ways(0)),
    "no images": random_case(9, both_ways(9), batch=0),
    "cross": random_case(12, cross(3, 4), shared=("u",)),
    "each to its own": random_case(12, cross(3, 4), merge=False),
    "unequal walks": random_case(15, atrous(3, 5), shared=("u", "delta", "B", "C")),
    "new at every line": random_case(12, each_line(3, 4)),
    "tokens left out": random_case(9, (Traversal(1, 3, 2, 0, 3), Traversal.sequence(9))),
    "no walk at all": random_case(9, (Traversal(0, 1, 1, 0, 0),)),
    "bare": random_case(9, both_ways(9), absent=("D", "z", "delta_bias"), delta_softplus=False),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_reference(name: str, dtype: torch.dtype) -> None:
    check_against_reference(CASES[name], dtype, "chunked")  # which makes the exact results outside
    with forward_ad.dual_level():
        check_against_reference(CASES[name], dtype, None)


def test_it_refuses_what_the_operator_refuses() -> None:
    case = CASES["both ways"]
    with forward_ad.dual_level():
        with pytest.raises(BackendError, match="triton"):
            selective_scan(**case.to(torch.float64).tensors, traversals=case.traversals, backend="triton")
        with pytest.raises(ShapeError, match="visits tokens"):
            selective_scan(**case.tensors, traversals=both_ways(66))


def test_autocast_does_not_round_its_state() -> None:
    case = CASES["both ways"].to(torch.float32)
    with forward_ad.dual_level():
        plain = selective_scan(**case.tensors, traversals=case.traversals)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(selective_scan(**case.tensors, traversals=case.traversals), plain)
