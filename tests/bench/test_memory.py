"""Peak memory: of passes whose need is known, of real models, and of cases that die."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.test_subject import case
from tests.cli.commands import python
from vision_ssm.bench.memory import CLEAR, fresh_processes

pytestmark = pytest.mark.skipif(not CLEAR.exists(), reason="resident memory is read from /proc")

MIB = 2**20


def test_what_is_kept_and_what_comes_and_goes_add_up():
    done = python(
        "import json, numpy as np\n"
        "from vision_ssm.bench.memory import _on_cpu\n"
        "before = np.ones(100 * 2**17)\n"  # 100 MiB that are there anyway
        "kept = []\n"
        "def once():\n"
        "    if not kept: kept.append(np.ones(24 * 2**17)); np.ones(300 * 2**17)\n"  # 300 MiB once, not in each pass
        "    large = np.ones(40 * 2**17); small = np.ones(8 * 2**17); del large; np.ones(16 * 2**17)\n"
        "print(json.dumps(_on_cpu(once)))"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kept_bytes"] / MIB == pytest.approx(24, abs=1)
    assert found["pass_bytes"] / MIB == pytest.approx(48, abs=1)
    assert found["peak_bytes"] == found["kept_bytes"] + found["pass_bytes"]


def test_a_process_that_the_system_ends_becomes_a_reason():
    asked = json.dumps(vars(case()))
    done = python(
        "import io, os, signal, sys\n"
        "import vision_ssm.bench.memory as memory\n"
        "memory.measure_here = lambda case: os.kill(os.getpid(), getattr(signal, case.model))\n"
        f"lines = [{asked!r}.replace('probe', name) for name in ('SIGKILL', 'SIGSEGV')]\n"
        "sys.stdin = io.StringIO('\\n'.join(lines))\n"
        "memory._serve()"
    )
    first, second = (json.loads(line)["error"] for line in done.stdout.splitlines())
    assert first == "out of memory: the system ended the process that measured this case"
    assert second.endswith("died of SIGSEGV")


def test_models_in_fresh_processes():
    def network(side: int, **changes: object):
        return case(**{"model": "test_resnet", "height": side, "width": side, "batch": 16, **changes})

    with fresh_processes() as measure:
        small, large, training = (
            measure(network(128)),
            measure(network(256)),
            measure(network(128, mode="training")),
        )
        impossible = measure(network(2, model="vim_nano"))
        enormous = measure(network(128, batch=10**10))
        again = measure(network(128))
        process = Path(f"/proc/{measure.__closure__[0].cell_contents.pid}")
        assert process.exists()
    assert not process.exists()
    assert large["pass_bytes"] / small["pass_bytes"] == pytest.approx(4, rel=0.3)  # four times the pixels
    assert training["pass_bytes"] > 2 * small["pass_bytes"]
    assert "patch" in impossible["error"]
    assert enormous["error"].startswith("out of memory: ")
    # Nothing of what came between is left; processes differ by themselves, and so `bench` takes the median of five.
    assert again["pass_bytes"] == pytest.approx(small["pass_bytes"], rel=1 / 3)
