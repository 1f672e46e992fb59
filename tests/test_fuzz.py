"""A few cases of every fuzz target, and that what they look for would be seen."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fuzz.__main__ import TARGETS, run_here
from fuzz.faults import Fault

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_keeps_its_promises(target: str) -> None:
    done = run("-m", "fuzz", target, "--cases", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target}: 8 cases from seed 1000000, 0 batches with faults" in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guard pages are made on Linux")
@pytest.mark.parametrize(("at_end", "offset"), [(True, 12), (False, -1)])
def test_a_read_beyond_a_guarded_tensor_ends_the_process(at_end: bool, offset: int) -> None:
    code = (
        "import ctypes, torch; from fuzz.guarded import Guards; guards = Guards()\n"
        f"x = guards.around(torch.arange(3.), at_end={at_end}); assert x.tolist() == [0, 1, 2]; print('there')\n"
        f"ctypes.string_at(x.data_ptr() + {offset}, 1)"
    )
    done = run("-u", "-c", code)
    assert done.stdout == "there\n"
    assert done.returncode == -signal.SIGSEGV


def test_a_broken_promise_is_told_with_its_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def case(rng: random.Random, folder: Path) -> None:
        assert folder.is_dir()
        if rng.random() == random.Random("broken 7").random():
            raise Fault("it broke")

    target = types.ModuleType("fuzz.broken")
    target.case = case  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fuzz.broken", target)
    assert run_here("broken", range(5, 9)) == 1
    assert capsys.readouterr().out == "broken, case 7: it broke\n"
