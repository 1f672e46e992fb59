"""Whether an exported file says what the model says: both run on the same images, outputs are compared by numbers.

    error = max over outputs, images and sizes of  max |file - model| / max |model|

or what a task has to say of its own outputs, see `vision_ssm.tasks.exported.Form`.

Five images at the size that was exported; where the number of images is open, a batch of three and one of two as well;
where the size is open, two others, not square and of odd numbers of steps.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.errors import CheckpointError
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.exported import ExportedFile, ExportRecord
from vision_ssm.weights.runtimes import first_line

__all__ = ["Case", "Check", "Draw", "among", "check", "check_kept", "noise", "require"]

IMAGES = 5
BATCHES = (3, 2)  # that the five come in as well
ROUNDS = 5  # of which the middle one is the time


@dataclass(frozen=True)
class Case:
    """Images of one size in one batch, and the largest error of their outputs."""

    batch: int
    height: int
    width: int
    error: float


@dataclass(frozen=True)
class Check:
    """What came of comparing a file with its model.

    Attributes:
        cases: of sizes and batches.
        agreement: share of the answers (largest entries along the classes of the first output) that are the same.
        runtime_seconds: of the file for one image of the exported size, the middle of `ROUNDS`.
        torch_seconds: of the model likewise.
        threads: that both had.
        tolerance: that the error was held to.
    """

    cases: tuple[Case, ...]
    agreement: float
    runtime_seconds: float
    torch_seconds: float
    threads: int
    tolerance: float

    @property
    def error(self) -> float:
        """The largest of all cases; nan if one of them is."""
        return max((case.error for case in self.cases), key=_badness)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"error": self.error, **asdict(self)}


Draw = Callable[[int, int, tuple[int, int], int], Tensor]
"""From a count, channels, a size and a seed to images [count, C, H, W] as they are after their preparation."""


def noise(count: int, channels: int, size: tuple[int, int], seed: int) -> Tensor:
    """Draw images at random."""
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def among(images: Sequence[Tensor]) -> Draw:
    """Return what draws from images [1, C, h, w] there are, brought to the size."""

    def draw(count: int, channels: int, size: tuple[int, int], seed: int) -> Tensor:
        chosen = [images[(seed * IMAGES + number) % len(images)] for number in range(count)]
        return torch.cat([F.interpolate(image, size, mode="bilinear", align_corners=False) for image in chosen])

    return draw


def check(file: ExportedFile, form: Form, tolerance: float, draw: Draw = noise) -> Check:
    """Compare a file with the model that it was exported from.

    Args:
        file: opened.
        form: of the model, on the CPU.
        tolerance: to be noted.
        draw: the images.

    Raises:
        CheckpointError: the file's runtime cannot run it, or yields other outputs.
    """
    channels = file.info.preprocessing.input_size[0]
    cases, same, answers = [], 0, 0
    singles = [draw(1, channels, file.record.size, seed) for seed in range(IMAGES)]
    for images in (*singles, *_others(file.record, channels, singles, draw)):
        case, alike, of = _case(file, form, images)
        cases.append(case)
        same, answers = same + alike, answers + of
    with torch.inference_mode():
        ours = _seconds(lambda: form.module(singles[0]))
    theirs = _seconds(lambda: file(singles[0]))
    return Check(tuple(cases), same / answers, theirs, ours, torch.get_num_threads(), tolerance)


def check_kept(file: ExportedFile, form: Form, tolerance: float, draw: Draw = noise) -> None:
    """Run the first image again: the file was checked, and then written anew to hold what came of it.

    Raises:
        CheckpointError: the file cannot be run any more, or an error is beyond the tolerance.
    """
    images = draw(1, file.info.preprocessing.input_size[0], file.record.size, 0)
    case, _, _ = _case(file, form, images)
    if not case.error <= tolerance:
        raise CheckpointError(
            f"the file that was checked changed as its record was written into it: an error of {case.error:.1e}, and "
            f"{tolerance:g} is allowed. The file was removed."
        )


def require(found: Check) -> None:
    """Raise CheckpointError where the error is beyond the tolerance."""
    if not found.error <= found.tolerance:
        worst = max(found.cases, key=lambda case: _badness(case.error))
        raise CheckpointError(
            f"the exported file differs from the model: an error of {worst.error:.1e} for {worst.batch} "
            f"image(s) of {worst.height}x{worst.width}, and {found.tolerance:g} is allowed; {found.agreement:.1%} of "
            "the answers agree. The file was removed."
        )


def _badness(error: float) -> float:
    """Return what orders errors, with what is no number above all of them."""
    return math.inf if math.isnan(error) else error


def _others(record: ExportRecord, channels: int, singles: Sequence[Tensor], draw: Draw) -> list[Tensor]:
    batches: list[Tensor] = []
    if "batch" in record.dynamic:
        batches += torch.split(torch.cat(list(singles)), list(BATCHES))
    if "size" in record.dynamic:
        count = BATCHES[0] if "batch" in record.dynamic else 1
        rows, columns = (max(side // record.step, 2) for side in record.size)
        for number, form in enumerate(((_odd(rows), columns + 2), (rows + 2, _odd(columns // 2)))):
            size = (form[0] * record.step, form[1] * record.step)
            batches.append(draw(count if number == 0 else 1, channels, size, IMAGES + number))
    return batches


def _odd(steps: int) -> int:
    """Return an odd number near ``steps``, and not below 3."""
    return max(steps | 1, 3)


def _case(file: ExportedFile, form: Form, images: Tensor) -> tuple[Case, int, int]:
    """Return what came of some images, how many answers are the same, and of how many."""
    coarse = form.compare_int8 if file.record.precision == "int8" else None
    compare = coarse or form.compare or _compared
    with torch.inference_mode():
        expected = form.module(images)
    found = _run(file, images)
    _require_shapes(found, expected)
    error, same, answers = compare(found, expected)
    batch, _, height, width = images.shape
    return Case(batch, height, width, error), same, answers


def _run(file: ExportedFile, images: Tensor) -> list[Tensor]:
    try:
        return list(file(images).values())
    except Exception as error:  # whatever a runtime raises
        raise CheckpointError(
            f"the exported file cannot be run on {list(images.shape)}: {first_line(error)}. The file was removed."
        ) from error


def _require_shapes(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    shapes, right = ([list(output.shape) for output in outputs] for outputs in (found, expected))
    if shapes != right:
        raise CheckpointError(
            f"the exported file yields {shapes} where the model yields {right}. The file was removed."
        )


def _compared(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, int, int]:
    decided = found[0].argmax(1) == expected[0].argmax(1)
    return max(map(_error, found, expected), key=_badness), int(decided.sum()), decided.numel()


def _error(found: Tensor, expected: Tensor) -> float:
    difference, largest = (found.double() - expected.double()).abs().max(), expected.double().abs().max()
    return float(difference / largest) if largest > 0 else float(difference)


def _seconds(once: Callable[[], Any]) -> float:
    once()
    spent = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        once()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)
