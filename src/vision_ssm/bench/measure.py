"""Timing models in turn, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from vision_ssm.analysis.model_cost import Cost, cost
from vision_ssm.bench.load import LoadWatch, is_busy
from vision_ssm.bench.memory import fresh_processes
from vision_ssm.bench.report import Measured, Report
from vision_ssm.bench.settings import Case, Settings, split_variant
from vision_ssm.bench.subject import FAILURES, prepare, reason, require_subject, synchronise
from vision_ssm.device import choose_device
from vision_ssm.errors import ConfigError, notify
from vision_ssm.weights.exported import is_exported

__all__ = ["run_benchmark"]

WARM_SECONDS = 0.5  # of untimed passes, at least two of them
SAMPLE_SECONDS = 0.2  # a timed sample takes at least this long, in as many passes as that needs
# At least so many passes in a sample, after an untimed one, where exported files take part: their threads spin on.
RUNTIME_CALLS = 3
LOOK_SECONDS = 0.5  # at what others do, before anything runs
MEMORY_PROCESSES = 5  # in which the peak is measured; an odd number has a middle
ATTEMPTS = 3  # of a group whose samples were disturbed
CEILING_SIDE = 4096  # of the square matrix product that stands for the machine's ceiling

Probe = Callable[[Case], dict[str, Any]]  # measures peak memory, see fresh_processes


class _Stopwatch:
    """One thing to time: warms up when made, then takes samples of seconds per call, of at least so many calls."""

    def __init__(self, once: Callable[[], object], device: str, least: int = 1) -> None:
        self._once, self._device = once, device
        self.samples: list[float] = []
        spent: list[float] = []
        while len(spent) < 2 or sum(spent) < WARM_SECONDS:
            spent.append(self._seconds(1))
        self.calls = max(least, math.ceil(SAMPLE_SECONDS / spent[-1]))

    def sample(self) -> None:
        """Time the calls of one sample; several are preceded by one that refills the caches."""
        if self.calls > 1:
            self._once()
        self.samples.append(self._seconds(self.calls) / self.calls)

    def _seconds(self, calls: int) -> float:
        synchronise(self._device)
        started = time.perf_counter()
        for _ in range(calls):
            self._once()
        synchronise(self._device)
        return time.perf_counter() - started


def run_benchmark(
    settings: Settings,
    *,
    on_group: Callable[[Report, list[Measured]], None] = lambda report, group: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Measure everything that the settings ask for.

    In each group of cases (all models at one size, batch, dtype and number of threads) every model is built and warmed
    up; then each round takes one sample of every model and of a matrix product, back and forth through the list. Where
    other processes kept the machine busy meanwhile, or a share of the ceiling came out above 1, the rounds are taken
    again, up to `ATTEMPTS` times, and the least disturbed ones are kept. A case that fails keeps its reason instead of
    figures. Ctrl-C ends the measuring, not the program: what was measured until then is returned, marked as
    interrupted. A machine that is busy before anything runs is said by a `VisionSSMNotice`.

    Args:
        settings: what to measure.
        on_group: called with the report so far and the group that was just finished.
        on_step: called with (steps done, steps in all).

    Raises:
        ConfigError: unknown model, a device that this machine lacks or that cannot be timed, or peak memory asked for
            on a system that cannot tell it.
    """
    settings = replace(settings, device=_checked_device(settings.device))
    for model in settings.models:
        require_subject(split_variant(model)[0])
    _tell_if_busy(max(settings.threads))
    report = Report.begin(settings, CEILING_SIDE)
    steps = _Steps(on_step, settings.group_count * (len(settings.models) + settings.rounds))
    threads = torch.get_num_threads()
    try:
        with fresh_processes() if settings.memory else nullcontext() as probe:
            for cases in settings.groups():
                group = [Measured(case) for case in cases]
                report.measured += group
                _measure_group(group, settings.rounds, probe, steps)
                on_group(report, group)
        report.complete = True
    except KeyboardInterrupt:
        report.interrupted = True
        report.measured = [row for row in report.measured if row.samples or row.error]
    finally:
        torch.set_num_threads(threads)
    report.end()
    return report


def _tell_if_busy(threads: int) -> None:
    load = LoadWatch()
    time.sleep(LOOK_SECONDS)
    others = load.cores_of_others()
    if is_busy(others, threads):
        notify(
            f"the machine is busy: other processes keep {others:.1f} cores at work. A group is taken up to {ATTEMPTS} "
            "times; figures that were disturbed all the same say so."
        )


class _Steps:
    def __init__(self, told: Callable[[int, int], None], total: int) -> None:
        self._told, self._done, self._total = told, 0, total

    def more(self, steps: int) -> None:
        """So many were not foreseen."""
        self._total += steps

    def __call__(self) -> None:
        self._done += 1
        self._told(self._done, self._total)


def _checked_device(device: str) -> str:
    chosen = choose_device(device)
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"only cpu and cuda devices can be timed, got {device!r}")
    return str(chosen)


def _measure_group(group: list[Measured], rounds: int, probe: Probe | None, steps: _Steps) -> None:
    case = group[0].case
    torch.set_num_threads(case.threads)
    watches: list[tuple[_Stopwatch, Measured]] = []
    least = RUNTIME_CALLS if any(is_exported(split_variant(row.case.model)[0]) for row in group) else 1
    for row in group:
        watch = _made_ready(row, probe, least)
        if watch is not None:
            row.calls = watch.calls
            watches.append((watch, row))
        steps()
    if watches:
        ceiling = _Stopwatch(_product(case), case.device, least)
        _take_undisturbed(watches, ceiling, rounds, steps)
    if case.device.startswith("cuda"):
        torch.cuda.empty_cache()


class _Attempt(NamedTuple):
    """Samples of a group, how disturbed they are (impossible shares, cores of others), and those of the ceiling."""

    rank: tuple[int, float]
    others: float | None
    ceiling: list[float]
    samples: list[list[float]]


def _keep(attempt: _Attempt, rows: list[Measured]) -> None:
    for row, samples in zip(rows, attempt.samples, strict=True):
        row.samples, row.ceiling_samples, row.others = samples, attempt.ceiling, attempt.others


def _take_undisturbed(
    watches: list[tuple[_Stopwatch, Measured]], ceiling: _Stopwatch, rounds: int, steps: _Steps
) -> None:
    """Take the samples; again where others kept the machine busy or a share is impossible. The quietest ones stay."""
    rows = [row for _, row in watches]
    best: _Attempt | None = None
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            steps.more(rounds)
        for stopwatch in (ceiling, *(watch for watch, _ in watches)):
            stopwatch.samples = []
        for watch, row in watches:
            row.samples, row.ceiling_samples, row.attempts = watch.samples, ceiling.samples, attempt
        load = LoadWatch()
        try:
            _take_rounds(watches, ceiling, rounds, steps)
        except KeyboardInterrupt:
            if best is not None:
                _keep(best, rows)
            raise
        others = load.cores_of_others()
        impossible = sum((row.share(CEILING_SIDE) or 0) > 1 for row in rows)
        rank = impossible, others or 0.0
        if best is None or rank < best.rank:
            best = _Attempt(rank, others, ceiling.samples, [row.samples for row in rows])
        _keep(best, rows)
        if not impossible and not is_busy(others, rows[0].case.threads):
            return


def _take_rounds(watches: list[tuple[_Stopwatch, Measured]], ceiling: _Stopwatch, rounds: int, steps: _Steps) -> None:
    for turn in range(rounds):
        ceiling.sample()
        for watch, row in watches if turn % 2 == 0 else reversed(watches):
            _take(watch, row)
        steps()


def _made_ready(row: Measured, probe: Probe | None, least: int) -> _Stopwatch | None:
    """Measure its memory, build and warm it up here; None, with the reason in the row, where that fails."""
    case = row.case
    row.cost = _cost(split_variant(case.model)[0], (case.height, case.width), case.batch)
    if probe is not None:
        found = _middle(probe, case)
        row.error = found.get("error")
        if row.error:
            return None
        row.memory = found
    try:
        return _Stopwatch(prepare(case), case.device, least)
    except FAILURES as error:
        row.error = reason(error)
        return None


def _middle(probe: Probe, case: Case) -> dict[str, Any]:
    """Measure peak memory in several fresh processes: the one in the middle, and the least and the most of all.

    How a process lays out its memory is not the same twice; of some models the peak differs by a third.
    """
    found: list[dict[str, Any]] = []
    for _ in range(MEMORY_PROCESSES):
        one = probe(case)
        if "peak_bytes" not in one:  # it failed, or nobody can tell: so it would again
            return one
        found.append(one)
    found.sort(key=lambda one: int(one["peak_bytes"]))
    least, most = found[0]["peak_bytes"], found[-1]["peak_bytes"]
    return {**found[len(found) // 2], "peak_least": least, "peak_most": most, "processes": len(found)}


def _take(watch: _Stopwatch, row: Measured) -> None:
    if row.error is None:
        try:
            watch.sample()
        except FAILURES as error:
            row.error = reason(error)


@lru_cache
def _cost(name: str, size: tuple[int, int], batch: int) -> Cost | None:
    """What a case takes; None where the model cannot be counted, which need not keep it from running."""
    try:
        return cost(name, size, batch_size=batch)
    except FAILURES:
        return None


def _product(case: Case) -> Callable[[], object]:
    """Return a matrix product of CEILING_SIDE in every direction, in the case's dtype."""
    dtype = getattr(torch, case.dtype)
    a, b = (torch.randn(CEILING_SIDE, CEILING_SIDE, device=case.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)
