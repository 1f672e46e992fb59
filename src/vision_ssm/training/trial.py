"""Steps of growing batches, in a process that does nothing else; see `vision_ssm.training.batch_size`.

It reads one JSON object from standard input: ``config`` of the run, ``most`` images of a step, and ``budget`` in bytes.
It writes a line of JSON per step: ``{"images": 4, "bytes": 123}``, or ``{"error": "..."}`` as its last one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vision_ssm.data.batches import Batch, Sample
from vision_ssm.errors import DataError, VisionSSMError
from vision_ssm.training.assembly import assemble
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.engine import Engine

__all__ = ["steps"]

STATUS, CLEAR, OOM_SCORE = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/self/oom_score_adj")


def steps(config: TrainConfig, most: int, budget: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Make steps of ever more images, and tell what each takes, until half of the budget is used.

    Two steps of each size: the first lets the optimiser make its state, and libraries what they keep.
    """
    alone: dict[str, Any] = {
        **{"data.batch_size": 2, "data.workers": 0, "optim.accumulate": 1, "run.resume": None, "run.log_to": []},
        **{"model.pretrained": False, "model.checkpoint": None, "model.start_required": False},
    }
    first = config.replace(**alone)
    with Processes.join(config.run.device) as processes:
        engine = Engine(assemble(first, processes, resuming=True, look=False), processes)
        engine.model.train()
        images = max(2, engine.task.batch_multiple)
        make = _batches(engine)
        while images <= most:
            try:
                used = _used(engine, make(images))
            except torch.OutOfMemoryError:
                tell({"images": images, "bytes": 2 * budget})
                return
            tell({"images": images, "bytes": used})
            if used > budget / 2:
                return
            images *= 2


def _batches(engine: Engine) -> Callable[[int], Batch]:
    """Make batches of one training image, the first that can be read, augmented anew each time."""
    dataset, task = engine.parts.train.dataset, engine.task
    transform = task.transform(engine.parts.preprocessing, train=True)
    for position in range(len(dataset)):
        with suppress(DataError):
            image, target = dataset[position]
            size = image.size[::-1]
            return lambda count: task.collate([Sample(*transform(image, target), size, position) for _ in range(count)])
    raise DataError("not one of the training images can be read.")


def _used(engine: Engine, batch: Batch) -> int:
    """Bytes that this process, or the GPU for it, holds at the highest point of a step."""
    on_gpu = engine.processes.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(engine.processes.device)
    else:
        CLEAR.write_text("5", encoding="ascii")  # sets VmHWM, the highest resident size, to the present one
    for _ in range(2):
        engine.progress.step = 0
        engine.update(iter([batch]))
    if on_gpu:
        return int(torch.cuda.max_memory_reserved(engine.processes.device))
    lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


def _main() -> None:
    def tell(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    with suppress(OSError):  # if memory runs out, the system shall end this process and no other
        OOM_SCORE.write_text("1000", encoding="ascii")
    question = json.load(sys.stdin)
    try:
        steps(TrainConfig.from_dict(question["config"]), question["most"], question["budget"], tell)
    except (VisionSSMError, OSError) as error:
        tell({"error": str(error)})


if __name__ == "__main__":
    _main()
