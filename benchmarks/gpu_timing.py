"""What the measurements of benchmarks/gpu.py share: floors of bytes, timing in turn, rows, files and plots.

The floor of a pass is the bytes that it cannot but read and write once, at the rate of a large copy in the same run.
Forward: inputs in, outputs out. Backward: what is saved and the gradients of the outputs in, the gradients of the
inputs out. Tensors that the caches hold can be faster than that.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_ssm.plots import BLUE, GREY, ORANGE, png_figure
from vision_ssm.storage import whole_file

FORMS = ("forward", "forward and backward")
DRAWN = 2**23  # elements: with fewer the caches would hold most, and the floor of bytes is not theirs


def size(*tensors: Tensor | None) -> int:
    """Bytes of all that are there."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def least_bytes(read: int, written: int, saved: int, gradients: int) -> dict[str, int]:
    """Bytes of each of FORMS, from those of the inputs, the outputs, what is saved, and the inputs' gradients."""
    forward = read + written
    return dict(zip(FORMS, (forward, forward + saved + written + gradients), strict=True))


def outputs(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What an operator returns, as a tuple."""
    return (y,) if isinstance(y, Tensor) else tuple(y)


def passes(
    run: Callable[..., Any], tensors: dict[str, Tensor], others: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what runs each of FORMS."""
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    with torch.no_grad():
        gradients = [torch.randn_like(y) for y in outputs(run(**tensors, **others))]

    def forward() -> Any:
        with torch.no_grad():
            return run(**tensors, **others)

    def both() -> Any:
        return torch.autograd.grad(outputs(run(**leaves, **others)), list(leaves.values()), gradients)

    return forward, both


def hold(what: str, found: Tensor, exact: Tensor, limit: float) -> None:
    """Refuse to time a kernel whose results are wrong."""
    error = float((found.double() - exact).norm() / exact.norm())
    if not error <= limit:
        raise SystemExit(f"{what} is off by {error:.1e}: fix it before timing it")


def rows_of(
    what: dict[str, Any],
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]],
    least: dict[str, dict[str, float]],
    peer: str,
    rounds: int,
) -> list[dict[str, Any]]:
    """Time 'vision_ssm' and, where it is among the ``runs``, its peer; return and print a row for each of FORMS.

    ``least`` has the floors. Rows begin with ``what``, whose first value and dtype are printed.
    """
    from gpu_ceilings import seconds

    rows = []
    for place, form in enumerate(FORMS):
        took: dict[str, list[float]] = {who: [] for who in runs}
        for _ in range(rounds):  # in turn, so that a clock that drifts treats them alike
            for who, forms in runs.items():
                took[who] += seconds(forms[place], rounds=1)
        median = {who: statistics.median(values) for who, values in took.items()}
        ours = median["vision_ssm"]
        row = {
            **what,
            "pass": form,
            "seconds": median,
            "samples": took,
            "floor": least[form],
            "over_floor": ours / least[form]["seconds"],
            f"over_{peer}": ours / median[peer] if peer in median else None,
        }
        rows.append(row)
        beside = f", {row[f'over_{peer}']:.2f} x {peer}" if peer in median else ""
        print(
            f"{next(iter(what.values())):42} {what['dtype']:19} {form:21} {1e3 * ours:8.3f} ms, "
            f"{row['over_floor']:.2f} x floor{beside}",
            flush=True,
        )
    return rows


def draw_rows(rows: list[dict[str, Any]], peer: str, path: Path) -> None:
    """Draw each row's time over its floor as bars, ours and the peer's."""
    with png_figure(path, (9.2, 0.42 * len(rows) + 1.2)) as figure:
        axes = figure.subplots()
        labels = []
        for at, row in enumerate(rows):
            for offset, who, colour in ((-0.2, "vision_ssm", BLUE), (0.2, peer, ORANGE)):
                if who in row["seconds"]:
                    axes.barh(at + offset, row["seconds"][who] / row["floor"]["seconds"], 0.36, color=colour)
            labels.append(f"{next(iter(row.values()))}, {row['dtype']}, {row['pass']}")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.axvline(1, color=GREY)
        axes.set_xlabel(f"time / floor (blue: vision_ssm, orange: {peer})")


def save(found: dict[str, Any], peer: str, path: Path) -> None:
    """Write the file, whole or not at all, and beside it the plot."""
    with whole_file(path) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")
    rows = [row for row in found["rows"] if row.get("elements", DRAWN) >= DRAWN]
    draw_rows(rows, peer, path.with_suffix(".png"))
