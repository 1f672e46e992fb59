"""Every test of the operators runs with uninitialised memory full of NaN: an element that nobody writes is seen.

And what several of them run over: the kernel's instruction sets, and numbers of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vision_ssm.ops import dispatch as backends
from vision_ssm.ops.native import INSTRUCTION_SETS
from vision_ssm.ops.scan.cpu import CpuBackend


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_nan(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = allocate(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() and x.device.type != "meta" else x

        return allocate_nan

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    kernel = CpuBackend(request.param)
    reason = kernel.why_not(torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    kept = tuple(b for b in backends._BACKENDS if b.name != "cpu")
    monkeypatch.setattr(backends, "_BACKENDS", (kernel, *kept))
    yield request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
