"""What training on many processes exchanges, holds and reads: formulas, and the same counted on this machine.

    python benchmarks/scaling.py formulas --teraflops 10 --gigabytes-per-second 25
    python benchmarks/scaling.py count --model vim_base_patch16_224 --processes 2 4 --output results/scaling.json
    python benchmarks/scaling.py time --model vim_tiny_patch16_224 --batch 8 --output results/scaling_time.json

`formulas` prints, for every recipe of ImageNet's 1,281,167 images, what its epochs cost on GPUs that sustain
so many floating-point operations per second, and what these exchange and read. `count` starts processes over gloo that
make one update under DDP and FSDP2, and counts bytes: of the memory under the tensors that each process keeps from one
update to the next, and of the exchanges it takes part in. These do not depend on the machine; beside them stands the
most memory that a whole process had. `time` holds the formula of a step against the clock: what one process takes
alone gives the F of the formulas, a sum of as many numbers as there are parameters the bandwidth, and from these follow
the seconds of an update on several processes, of which no more than there are cores work at a time. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from results_file import provenance, write
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from vision_ssm.analysis import cost
from vision_ssm.models import create_model
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Parallel, Processes
from vision_ssm.training.recipes import list_recipes
from vision_ssm.training.sharding import units

IMAGES = 1_281_167
BYTES_PER_IMAGE = 147_897_477_120 / IMAGES
"""Of the JPEG files of the training images: the size of the archive that holds them, ILSVRC2012_img_train.tar."""

FLOAT = 4
COPIES = {"parameters": 1, "gradients": 1, "moments": 2, "average": 1}
"""Of a parameter, in training by AdamW with a moving average."""


def exchanged(way: str, parameters: int, outside: int, world: int, batches: int = 1) -> float:
    """Bytes that one process sends per update, and receives as many, over a ring of ``world``.

    DDP sums the gradients once: reduced (W-1)/W, then gathered (W-1)/W. FSDP2 puts parameters together for the forward
    pass and, but for those outside the blocks, again for the backward pass, and reduces the gradients, in every batch.
    """
    part = (world - 1) / world
    numbers = 2 * parameters if way == "ddp" else batches * (3 * parameters - outside)
    return FLOAT * part * numbers


def held(way: str, parameters: int, world: int) -> dict[str, float]:
    """Bytes that one process keeps between updates."""
    return {name: FLOAT * copies * parameters / (world if way == "fsdp" else 1) for name, copies in COPIES.items()}


# ----------------------------------------------------------------------------------------------------- formulas
def recipes() -> list[tuple[str, TrainConfig]]:
    found = [(name, TrainConfig.load(name)) for name in sorted(list_recipes()) if name.endswith("_imagenet")]
    return [(name, config) for name, config in found if config.task == "classification"]


def formulas(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name, config in recipes():
        side = config.model.img_size
        found = cost(config.model.name, side)
        operations = 6 * found.macs_all  # two per multiply-add, forward once and backward twice as many
        per_gpu = 1e12 * options.teraflops / operations
        rows.append({"recipe": name, "parameters": found.params, "epochs": config.schedule.epochs})
        rows[-1]["images_per_second"] = per_gpu
        for gpus in options.gpus:
            batch = config.batch_size * config.optim.accumulate
            seconds = batch / per_gpu
            sent = exchanged("ddp", found.params, 0, gpus)
            rows[-1][f"{gpus}"] = {
                "hours": IMAGES * (config.schedule.epochs or 0) / (per_gpu * gpus) / 3600,
                "megabytes_per_second_read": per_gpu * gpus * BYTES_PER_IMAGE / 1e6,
                "megabytes_sent_per_update": sent / 1e6,
                "share_of_a_step_if_not_hidden": sent / (1e9 * options.gigabytes_per_second) / seconds,
            }
    return rows


def print_formulas(rows: list[dict[str, Any]], gpus: list[int]) -> None:
    print(f"{'recipe':34}{'images/s':>9}", *(f"{f'{n} GPUs: hours':>16}{'MB/s':>8}{'grad.':>7}" for n in gpus))
    for row in rows:
        each = (row[str(n)] for n in gpus)
        columns = (
            f"{x['hours']:16.1f}{x['megabytes_per_second_read']:8.0f}{x['share_of_a_step_if_not_hidden']:7.1%}"
            for x in each
        )
        print(f"{row['recipe']:34}{row['images_per_second']:9.0f}", *columns)


# -------------------------------------------------------------------------------------------------------- count
class Exchanges(TorchDispatchMode):
    """Bytes that a process sends in the collectives it calls, if each goes round a ring."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self._part = (world - 1) / world

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if "allreduce" in name:
            self.sent["all-reduce"] += int(2 * self._part * bytes_of(args[0]))
        elif "allgather" in name:
            self.sent["all-gather"] += int(self._part * bytes_of(args[0]))
        elif "reduce_scatter" in name:
            self.sent["reduce-scatter"] += int(self._part * bytes_of(args[1]))
        return function(*args, **(kwargs or {}))


def bytes_of(value: Any) -> int:
    """Of the tensors in a value; of one in shards, this process's."""
    if isinstance(value, Tensor):
        local = value.to_local() if isinstance(value, DTensor) else value
        return local.numel() * local.element_size()
    return sum(map(bytes_of, value)) if isinstance(value, list | tuple) else 0


def storage_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of the memory that tensors lie in; where it is one for several, once."""
    local = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in local}.values())


def count_on(rank: int, world: int, way: Parallel, name: str, meeting: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    empty = memory_of_this_process("VmRSS")
    torch.manual_seed(0)
    model = create_model(name).train()
    average = ModelEmaV3(model, decay=0.99)
    models = (model, average.module)
    processes = Processes(rank, world, torch.device("cpu"))
    parallel = processes.spread(models, models, way, sync_batch_norm=False, unused_parameters=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with Exchanges(world) as exchanges:
        parallel(torch.randn(1, 3, 224, 224)).square().mean().backward()
        optimizer.step()
    average.update(model)
    parameters = list(model.parameters())
    moments = [x for state in optimizer.state.values() for x in (state["exp_avg"], state["exp_avg_sq"])]
    kept = {
        "parameters": storage_of(parameters),
        "gradients": storage_of([p.grad for p in parameters if p.grad is not None]),
        "moments": storage_of(moments),
        "average": storage_of(list(average.module.parameters())),
    }
    answers.put((rank, kept, dict(exchanges.sent), (empty, memory_of_this_process("VmHWM"))))
    dist.barrier()
    dist.destroy_process_group()


def memory_of_this_process(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far. Not getrusage, which begins with the parent's. On Linux only."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def together(target: Any, world: int, given: Sequence[Any], folder: Path, patience: float) -> list[Any]:
    """Run ``target(rank, world, *given, meeting, answers)`` in ``world`` processes and return what each answers."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    meeting = str(folder / f"meeting-{target.__name__}-{world}-{given[0]}")
    children = [context.Process(target=target, args=(rank, world, *given, meeting, answers)) for rank in range(world)]
    for child in children:
        child.start()
    found = sorted(answers.get(timeout=patience) for _ in children)
    for child in children:
        child.join()
    return found


def count(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    model = create_model(options.model)
    parameters = sum(p.numel() for p in model.parameters())
    outside = parameters - sum(p.numel() for unit in units(model) for p in unit.parameters())
    rows = []
    for world in options.processes:
        for way in options.ways:
            found = together(count_on, world, (way, options.model), folder, options.patience)
            _, kept, sent, _ = max(found, key=lambda each: sum(each[1].values()))
            row = {"processes": world, "way": way, "model": options.model, "parameters": parameters}
            row |= {"outside_of_blocks": outside, "kept": kept, "kept_by_formula": held(way, parameters, world)}
            row |= {"sent": sent, "sent_by_formula": exchanged(way, parameters, outside, world)}
            empty, peak = max((memory for *_, memory in found), key=lambda each: each[1])
            row |= {"memory_of_libraries": empty, "peak_memory": peak}
            rows.append(row)
            print(
                f"{way} on {world}: keeps {sum(kept.values()) / 1e6:.1f} MB, by the formula "
                f"{sum(row['kept_by_formula'].values()) / 1e6:.1f}; sends {sum(sent.values()) / 1e6:.1f} MB, by the "
                f"formula {row['sent_by_formula'] / 1e6:.1f}; at most {peak / 1e6:.0f} MB in a process, "
                f"{empty / 1e6:.0f} of them libraries",
                flush=True,
            )
    return rows


# --------------------------------------------------------------------------------------------------------- time
def time_on(rank: int, world: int, way: Parallel, options: argparse.Namespace, meeting: str, answers: Any) -> None:
    """Time updates and, apart from them, the sum of as many numbers as the model has parameters."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = create_model(options.model).train()
    processes = Processes(rank, world, torch.device("cpu"))
    parallel = processes.spread((model,), (model,), way, sync_batch_norm=False, unused_parameters=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(options.batch, 3, 224, 224)
    numbers = torch.zeros(sum(p.numel() for p in model.parameters()))

    def update() -> None:
        parallel(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    answers.put(
        (rank, seconds_of(update, options.rounds), seconds_of(lambda: dist.all_reduce(numbers), options.rounds))
    )
    dist.barrier()
    dist.destroy_process_group()


def seconds_of(call: Any, rounds: int) -> float:
    """The median of so many calls after one that is not timed, all processes beginning each together."""
    call()
    found = []
    for _ in range(rounds):
        dist.barrier()
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def timed(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Seconds of an update beside those that follow from one process alone and a measured bandwidth."""
    found = cost(options.model, 224)
    model = create_model(options.model)
    outside = found.params - sum(p.numel() for unit in units(model) for p in unit.parameters())
    [[_, alone, _]] = together(time_on, 1, ("ddp", options), folder, options.patience)
    flops = 6 * found.macs_all * options.batch / alone
    print(f"one process: {alone:.3f} s, {flops / 1e9:.1f} gigaflops sustained", flush=True)
    rows: list[dict[str, Any]] = [{"processes": 1, "way": "ddp", "seconds": alone, "flops": flops}]
    cores = len(os.sched_getaffinity(0))
    for world in options.processes:
        for way in options.ways:
            answers = together(time_on, world, (way, options), folder, options.patience)
            seconds, summing = (max(each[i] for each in answers) for i in (1, 2))
            bandwidth = exchanged("ddp", found.params, outside, world) / summing
            turns = max(1.0, world / cores)
            computing, sending = turns * alone, exchanged(way, found.params, outside, world) / bandwidth
            row = {"processes": world, "way": way, "seconds": seconds, "bandwidth": bandwidth}
            row |= {"computing_by_formula": computing, "exchange_by_formula": sending}
            rows.append(row)
            print(
                f"{way} on {world}: {seconds:.3f} s, by the formulas {computing:.3f} s and up to {sending:.3f} s more",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("formulas", "count", "time"))
    parser.add_argument("--model", default="vim_base_patch16_224")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--ways", choices=("ddp", "fsdp"), nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument(
        "--teraflops", type=float, default=10.0, help="that a GPU sustains, 10^12 operations per second"
    )
    parser.add_argument("--gigabytes-per-second", type=float, default=25.0, help="that a process sends")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds to wait for a count")
    parser.add_argument("--batch", type=int, default=8, help="images of a process that is timed")
    parser.add_argument("--rounds", type=int, default=7, help="updates that are timed")
    parser.add_argument("--output", type=Path, help="results file")
    options = parser.parse_args()
    if options.what == "formulas":
        rows = formulas(options)
        print_formulas(rows, options.gpus)
    else:
        with tempfile.TemporaryDirectory() as folder:  # where the processes meet
            rows = (count if options.what == "count" else timed)(options, Path(folder))
    if options.output is not None:
        write(options.output, {**provenance(" ".join(["python", *sys.argv])), options.what: rows})


if __name__ == "__main__":
    main()
