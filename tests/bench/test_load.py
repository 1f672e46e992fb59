"""What others use of the machine: read from a kernel's figures, and when it spoils a measurement."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vision_ssm.bench import load


def test_work_of_this_process_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = {"wall": 100.0, "own": 5.0}
    monkeypatch.setattr(load.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(load.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    #                               user nice system idle iowait irq softirq steal guest guest_nice
    load.STAT.write_text("cpu  1000 0 500 9000 50 0 0 0 700 0\ncpu0 1 2 3\n")
    watch = load.LoadWatch()
    clock.update(wall=110.0, own=12.0)
    load.STAT.write_text("cpu  2000 100 600 9500 90 0 0 100 900 0\n")
    assert watch.cores_of_others() == pytest.approx((13 - 7) / 10)


def test_where_nobody_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "STAT", tmp_path / "none")
    assert load.LoadWatch().cores_of_others() is None
    assert not load.is_busy(None, 4)


@pytest.mark.skipif(not load.STAT.exists(), reason="this system does not tell")
def test_this_machine_tells() -> None:
    watch = load.LoadWatch()
    time.sleep(0.05)
    assert (watch.cores_of_others() or 0) >= 0


def test_free_cores_are_there_for_others() -> None:
    assert not load.is_busy(5.9, threads=2, cores=8)
    assert load.is_busy(6.3, threads=2, cores=8)
    assert load.is_busy(0.3, threads=2, cores=2)
    assert not load.is_busy(0.1, threads=2, cores=2)
