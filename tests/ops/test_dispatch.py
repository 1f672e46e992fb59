"""Which backend runs an operator, what a name asks for, and the reasons given."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.ops.scan.cases import GPU, both_ways, needs_kernel, random_case
from vision_ssm.analysis import environment
from vision_ssm.errors import BackendError, ConfigError
from vision_ssm.ops import (
    add_norm,
    available_backends,
    causal_conv1d,
    dispatch,
    explain,
    native,
    operators,
    selective_scan,
)
from vision_ssm.ops.dispatch import Backend, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISION_SSM_BACKEND", raising=False)


def test_unknown_names_are_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(4, both_ways(4)).to(torch.float32)
    with pytest.raises(
        ConfigError, match=r"must be one of auto, triton, cpu, chunked, reference, got 'chunkd'.*'chunked'"
    ):
        case.run("chunkd")
    with pytest.raises(ConfigError, match=r"operator must be one of scan, conv, .*, got 'can'.*'scan'"):
        explain("can")
    monkeypatch.setenv("VISION_SSM_BACKEND", "cuda-core")
    with pytest.raises(ConfigError, match="VISION_SSM_BACKEND must be one of"):
        case.run()
    with pytest.raises(ConfigError, match="VISION_SSM_BACKEND must be one of"):
        causal_conv1d(torch.zeros(1, 5, 3), torch.zeros(1, 3, 4))


def test_the_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in available_backends() if Backend("scan", name).why_not(CPU, torch.float32) is None]
    ran = []
    for name in names:
        functions = Backend("scan", name).functions

        def record(call: Any, save: bool, *, name: str = name, run: Callable[..., Any] = functions.forward) -> Any:
            ran.append(name)
            return run(call, save)

        monkeypatch.setattr(functions, "forward", record)
    case = random_case(4, both_ways(4)).to(torch.float32)
    for name in names:
        monkeypatch.setenv("VISION_SSM_BACKEND", name)
        selective_scan(**case.tensors, traversals=case.traversals)  # type: ignore[arg-type]
    assert ran == names


@pytest.mark.parametrize("operator", operators())
def test_explain_names_one_backend_and_gives_every_reason(operator: str) -> None:
    for device, dtype in (("cpu", torch.float32), ("cpu", torch.float64), ("cuda", torch.float16)):
        report = explain(operator, device, dtype)
        assert [status.name for status in report] == available_backends(operator)
        assert sum(status.chosen for status in report) == 1 and all(status.reason for status in report)
        assert next(s for s in report if s.chosen).name == choose(operator, torch.device(device), dtype).name


def test_explain_says_what_runs_on_a_gpu_and_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(s for s in explain(device="cuda") if s.chosen).name == ("triton" if GPU else "chunked")
    assert next(s for s in explain("conv", "cuda") if s.chosen).name == ("triton" if GPU else "reference")
    monkeypatch.setenv("VISION_SSM_BACKEND", "reference")
    assert next(s for s in explain() if s.chosen).name == "reference"


@pytest.mark.parametrize("operator", operators())
def test_a_forced_backend_that_an_operator_lacks_means_its_reference(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("chunked", "triton"):
        if name in available_backends(operator):
            continue
        monkeypatch.setenv("VISION_SSM_BACKEND", name)
        assert choose(operator, CPU, torch.float32).name == "reference"
        status = next(s for s in explain(operator) if s.chosen)
        assert status.name == "reference"
        assert status.reason == f"VISION_SSM_BACKEND={name} asks for a backend that {operator} does not have"


def test_a_forced_backend_that_an_operator_has_runs_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 5, 3)
    monkeypatch.setenv("VISION_SSM_BACKEND", "triton")
    with pytest.raises(BackendError, match="conv backend 'triton' cannot run: the tensors are on cpu"):
        causal_conv1d(x, torch.zeros(1, 3, 4))
    with pytest.raises(BackendError, match="add_norm backend 'triton' cannot run: the tensors are on cpu"):
        add_norm(x, x, x[0, 0])
    assert not any(status.chosen for status in explain("conv"))
    with pytest.raises(BackendError, match=r"'cpu' cannot run: .*(not built|not float64)"):
        choose("scan", CPU, torch.float64, "cpu")


@needs_kernel
def test_every_operator_is_asked_about_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that the CPU's kernel cannot take says nothing about the others."""
    monkeypatch.setitem(dispatch._TABLE, "scan", dispatch._TABLE["scan"][2:])
    assert choose("scan", CPU, torch.float32).name == "chunked"
    assert choose("conv", CPU, torch.float32).name == choose("ssm", CPU, torch.float32).name == "cpu"


def test_a_row_is_all_that_a_new_operator_needs_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._TABLE, "toy", (Backend("toy", "triton"), Backend("toy", "reference")))
    assert available_backends("toy") == ["triton", "reference"]
    assert choose("toy", CPU, torch.float64).name == "reference"
    here = environment().devices[0]
    assert here.chosen_for("toy") == "reference"
    assert [status.reason for status in here.operators["toy"]] == [
        "the tensors are on cpu, the kernels run on GPUs",
        "the fastest that can run",
    ]


@pytest.mark.parametrize("operator", ["scan", "conv", "gla", "add_norm", "ssm"])
def test_every_backend_is_a_file_with_the_functions_of_the_others(operator: str) -> None:
    """Whatever a backend takes, the others of the operator take too, in the same order."""
    import inspect

    found = [Backend(operator, name) for name in available_backends(operator)]
    here = [backend for backend in found if backend.name != "triton" or operator == "scan"]
    assert found[-1].name == "reference"
    assert len({tuple(inspect.signature(backend.functions.forward).parameters) for backend in here}) == 1


def test_asking_loads_no_kernels_and_no_device() -> None:
    code = (
        "import sys, torch\n"
        "from vision_ssm.ops import explain, operators\n"
        "for operator in operators():\n"
        "    explain(operator); explain(operator, 'meta')\n"
        "loaded = [name for name in sys.modules if name.startswith('vision_ssm.ops') and 'triton_' in name]\n"
        "assert not loaded and 'vision_ssm.ops.conv.triton' not in sys.modules, loaded\n"
        "assert not torch.cuda.is_initialized(), 'cuda'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_the_kernel_the_first_scan_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_warned", False)
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.setattr(native, "MISSING", "it was not built: the install found no working C++ compiler")
    case = random_case(4, both_ways(4)).to(torch.float32)
    with pytest.warns(UserWarning, match="C\\+\\+ scan kernel is not available .*pure-torch scan"):
        first = case.run()
    with pytest.raises(BackendError, match="'cpu' cannot run: it was not built"):
        case.run("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = case.run()
    assert torch.equal(first["y"], second["y"])
