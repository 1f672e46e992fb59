"""The results of a benchmark as plain values with everything needed to judge them, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_ssm.bench.load import doubts
from vision_ssm.bench.settings import Case, Settings
from vision_ssm.errors import DataError
from vision_ssm.storage import whole_file

if TYPE_CHECKING:
    from vision_ssm.analysis import Cost

__all__ = ["Measured", "Report", "group_rows", "read_report", "slopes"]

FORMAT = "vision-ssm bench 1"
BACKWARD = 2  # a backward pass counts as two forward passes: one for the inputs' gradients, one for the weights'

DEFINITIONS = {
    "seconds": "per pass over one batch, from samples of at least 0.2 s each; models in turn, random weights",
    "time_ratio": "median of this model / median of the first model in the same group",
    "memory": "peak_bytes: most memory in use beyond weights and input during a pass, in a process of its own, the "
    "median of several (processes), whose least and most are peak_least and peak_most; the "
    "sum of pass_bytes (while it runs) and kept_bytes (left behind by the first pass, such as prepared weights); "
    "gradients of the weights are in it when training. CPU: resident memory. CUDA: memory allocated by torch",
    "macs": "multiply-adds of a forward pass of the batch, as published figures count them; macs_all: everything "
    "that is executed",
    "operations_per_second": "operations / median: two per multiply-add, but nine per state update of a scan; three "
    "times that when training",
    "others": "cores that other processes kept busy while samples were taken; attempts: how often those of the group "
    "were taken, because others were busy or a share was above 1: the least disturbed ones are kept",
    "doubts": "why a figure should not be believed",
    "share_of_ceiling": "operations_per_second / that of a 4096-sided square matrix product in the same dtype, timed "
    "in the same rounds",
    "slopes": "least-squares slope of log(median seconds) against log(pixels)",
}


@dataclass
class Measured:
    """A case and what has been found about it so far."""

    case: Case
    cost: Cost | None = None
    memory: dict[str, Any] | None = None
    calls: int = 0
    others: float | None = None
    attempts: int = 0
    samples: list[float] = field(default_factory=list)
    ceiling_samples: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float | None:
        """Median of seconds per pass, None where nothing was timed."""
        return statistics.median(self.samples) if self.samples and not self.error else None

    @property
    def peak(self) -> int | None:
        """Peak memory in bytes, None where it was not measured."""
        return (self.memory or {}).get("peak_bytes")

    @property
    def rate(self) -> float | None:
        """Operations per second, None where nothing was timed or they cannot be counted."""
        if not self.median or not self.cost:
            return None
        # The nine that a state update counts are single operations, not multiply-adds.
        forward = 2 * self.cost.macs_all - self.cost.scan_macs
        return forward * (1 + BACKWARD if self.case.mode == "training" else 1) / self.median

    def ceiling(self, side: int) -> float | None:
        """Operations per second of the square matrix product of that side."""
        return 2 * side**3 / statistics.median(self.ceiling_samples) if self.ceiling_samples else None

    def share(self, side: int) -> float | None:
        """Share of the ceiling."""
        rate, ceiling = self.rate, self.ceiling(side)
        return rate / ceiling if rate and ceiling else None


@dataclass
class Report:
    """Everything about one benchmark; ``complete`` is False until the last group is done."""

    settings: Settings
    origin: dict[str, Any]
    ceiling_side: int
    measured: list[Measured] = field(default_factory=list)
    complete: bool = False
    interrupted: bool = False

    @classmethod
    def begin(cls, settings: Settings, ceiling_side: int) -> Report:
        """Note the machine, the versions and the circumstances before anything runs."""
        from vision_ssm.analysis import environment

        machine = environment().to_dict()
        origin = {
            "machine": {key: machine[key] for key in ("processor", "cores", "system", "kernel", "variables")},
            "device": next(d["description"] for d in machine["devices"] if d["device"].startswith(settings.device)),
            "versions": machine["versions"],
            **_source(),
            "circumstances": {"started": _now(), "load_average_before": _load(), "note": settings.note},
        }
        return cls(settings, origin, ceiling_side)

    def end(self) -> None:
        """Note the circumstances after everything has run."""
        self.origin["circumstances"] |= {"ended": _now(), "load_average_after": _load()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        first = {_group(row.case): row for row in reversed(self.measured) if row.case.model == self.settings.models[0]}
        rows = [_row(row, first.get(_group(row.case)), self.ceiling_side) for row in self.measured]
        return {
            "format": FORMAT,
            "command": self.settings.command(),
            "complete": self.complete,
            "interrupted": self.interrupted,
            **self.origin,
            "settings": asdict(self.settings),
            "definitions": DEFINITIONS,
            "rows": rows,
            "slopes": slopes(rows),
        }

    def save(self, path: str | Path) -> None:
        """Write the results as JSON. Raises DataError when the file cannot be written; one of before then stays."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        with whole_file(path) as part:
            part.write_text(text + "\n", encoding="utf-8")


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a file written by `Report.save`. Raises DataError if it cannot be read or is something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read results {str(path)!r}: {getattr(error, 'strerror', None) or error}.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{str(path)!r} was not written by `vision-ssm bench`: its format is not {FORMAT!r}.")
    return found


def group_rows(rows: Sequence[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Sort rows into groups that agree in ``keys``, in order of appearance."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How time grows with pixels, for everything that was timed at three sizes or more (see DEFINITIONS)."""
    found = []
    keys = ("model", "batch", "dtype", "threads")
    for values, group in group_rows([row for row in rows if row["seconds"]], *keys).items():
        pixels = [math.log(row["height"] * row["width"]) for row in group]
        if len(set(pixels)) >= 3:
            slope = statistics.linear_regression(pixels, [math.log(row["seconds"]["median"]) for row in group]).slope
            found.append({**dict(zip(keys, values, strict=True)), "sizes": len(group), "slope": slope})
    return found


def _group(case: Case) -> tuple[Any, ...]:
    return case.height, case.width, case.batch, case.dtype, case.threads


def _row(row: Measured, first: Measured | None, ceiling_side: int) -> dict[str, Any]:
    median, case, cost = row.median, row.case, row.cost
    share = row.share(ceiling_side)
    return {
        **asdict(case),
        "params": cost.params if cost else None,
        "macs": cost.macs if cost else None,
        "macs_all": cost.macs_all if cost else None,
        "seconds": _spread(row.samples) if median else None,
        "images_per_second": case.batch / median if median else None,
        "time_ratio": median / first.median if median and first and first.median else None,
        "operations_per_second": row.rate,
        "ceiling_operations_per_second": row.ceiling(ceiling_side),
        "share_of_ceiling": share,
        "others": row.others,
        "attempts": row.attempts,
        "doubts": doubts(share, row.others, case.threads) if median else [],
        "memory": row.memory,
        "memory_ratio": row.peak / first.peak if row.peak and first and first.peak else None,
        "passes_per_sample": row.calls,
        "samples": row.samples,
        "error": row.error,
    }


def _spread(samples: list[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {
        "median": statistics.median(samples),
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2],
        "min": min(samples),
        "max": max(samples),
    }


def _source() -> dict[str, Any]:
    """Commit of the code that runs, and whether it has been changed since; None when it is not in a repository."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", here.parent, *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository, which then does not know this file.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return {"commit": None, "uncommitted_changes": None}
    return {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": bool(git("status", "--porcelain", "-uno"))}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
