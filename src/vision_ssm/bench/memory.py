"""Peak memory of one pass beyond weights and input, measured in a process that does nothing else.

On the CPU two passes are run. The first leaves behind what is kept between passes (weights prepared for a kernel,
workspaces of the libraries); the second shows what a pass needs while it runs:

    peak = (highest resident memory in the second pass - resident memory before it)
         + (anonymous resident memory after the first pass - before the first)

Free memory is given back to the system before each reading. Program code that the first pass pulls into memory is not
counted. On CUDA it is the most that torch had allocated during two passes, less what it had before them; the caching
of its allocator is not counted.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vision_ssm.bench.settings import Case
from vision_ssm.bench.subject import FAILURES, prepare, reason, synchronise
from vision_ssm.errors import ConfigError

__all__ = ["fresh_processes", "measure_here", "peak_of"]

STATUS, CLEAR, OOM_SCORE = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/self/oom_score_adj")
MODULE = "vision_ssm.bench.memory"  # this one; __name__ is __main__ where it serves


@contextmanager
def fresh_processes() -> Iterator[Callable[[Case], dict[str, Any]]]:
    """Yield a function that measures a case in a process of its own, and leave no process behind.

    It returns {"peak_bytes", "pass_bytes", "kept_bytes"}, the first the sum of the other two; or {"error": why the
    pass failed}; or {"unmeasured": why it could not be measured}, which says nothing about the pass.

    Raises:
        ConfigError: this system cannot tell the peak memory of a process.
    """
    if not CLEAR.exists():
        raise ConfigError("peak memory can be measured on Linux only: use --no-memory (memory=False) here.")
    # The server imports everything once, runs no model itself, and forks for every case. In a session of its own it
    # does not hear Ctrl-C: this process decides what ends.
    server = subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def measure(case: Case) -> dict[str, Any]:
        ask, answer = server.stdin, server.stdout
        if ask is None or answer is None:
            raise ValueError("the server has no pipes")
        with suppress(BrokenPipeError):  # a server that has died answers with nothing, below
            ask.write(json.dumps(asdict(case)) + "\n")
            ask.flush()
        line = answer.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "the server of fresh processes has died"}
        return found

    try:
        yield measure
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def measure_here(case: Case) -> dict[str, Any]:
    """Measure in this process, which should have done nothing before; returns as `fresh_processes` describes."""
    torch.set_num_threads(case.threads)
    try:
        return peak_of(prepare(case), case.device)
    except FAILURES as error:
        return {"error": reason(error)}


def peak_of(once: Callable[[], None], device: str) -> dict[str, Any]:
    """Measure a pass in this process, which should not have run it before; returns as `fresh_processes` describes."""
    return _on_cuda(once, device) if device.startswith("cuda") else _on_cpu(once)


def _on_cpu(once: Callable[[], None]) -> dict[str, Any]:
    _give_back()
    before = _status("RssAnon")
    once()
    _give_back()
    kept = max(0, _status("RssAnon") - before)
    try:
        CLEAR.write_text("5", encoding="ascii")  # sets VmHWM, the highest resident size, to the present one
    except OSError as error:
        return {"unmeasured": f"the highest resident size cannot be reset: {error.strerror}"}
    start = _status("VmHWM")
    once()
    during = _status("VmHWM") - start
    return {"peak_bytes": kept + during, "pass_bytes": during, "kept_bytes": kept}


def _on_cuda(once: Callable[[], None], device: str) -> dict[str, Any]:
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    once()
    synchronise(device)
    kept = torch.cuda.memory_allocated(device) - before
    once()
    synchronise(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return {"peak_bytes": peak, "pass_bytes": peak - kept, "kept_bytes": kept}


def _give_back() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library has it
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """Return one of the kernel's figures about this process, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines())
    return 1024 * int(lines[field].split()[0])


def _serve() -> None:
    """Answer every case that comes as a line of JSON with a line of JSON, each from a process of its own."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            with suppress(OSError):  # if memory runs out, the system shall end this process and no other
                OOM_SCORE.write_text("1000", encoding="ascii")
            _say(measure_here(Case(**json.loads(line))))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL:
            _say({"error": "out of memory: the system ended the process that measured this case"})
        elif code < 0:
            _say({"error": f"the process that measured this case died of {signal.Signals(-code).name}"})
        elif code:
            _say({"error": f"the process that measured this case failed with exit code {code}, see its traceback"})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
