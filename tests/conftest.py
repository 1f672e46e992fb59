"""Its presence puts the repository on the import path, so that tests find `tests.recorded`.

Without a GPU the Triton kernels are tested in Triton's interpreter, which must be asked for before triton is imported.
Processes that share the tests share the cores too, and so do the commands that the tests start. A thread that waits
for another gives its core away: two that spin while the other's turn has not come take many times as long.
"""

from __future__ import annotations

import os

_SHARED_BY = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if _SHARED_BY > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _SHARED_BY)))

import torch  # noqa: E402 -- reads both when it is imported

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
