"""The loader: batches depend on seed, epoch and position, and on nothing else."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor

from vision_ssm.data.batches import Batch
from vision_ssm.data.labelled.sources import open_dataset
from vision_ssm.data.loader import EpochLoader, epoch_order, worker_failures  # noqa: F401 -- for the code run by in_time
from vision_ssm.errors import ConfigError, DataError


class Numbers:
    """Image i is filled with i; counts what is decoded."""

    name = "numbers"
    class_names = ("even", "odd")
    mirror_safe = True

    def __init__(self, length: int) -> None:
        self.paths = tuple(str(i) for i in range(length))
        self.targets = tuple(i % 2 for i in range(length))
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.decoded.append(index)
        return Image.new("RGB", (2, 2), (index, 0, 0)), index % 2


def noisy(image: Image.Image, target: int) -> tuple[Tensor, int]:
    """Draw from all three generators that transforms use."""
    value = image.getpixel((0, 0))[0] + random.random()
    return torch.full((3, 2, 2), value) + torch.rand(3, 2, 2) + float(np.random.random()), target


def epochs(loader: EpochLoader, *positions: tuple[int, int]) -> list[list[Batch]]:
    result = []
    for position in positions:
        loader.set_position(*position)
        result.append(list(loader))
    return result


def equal(first: list[Batch], second: list[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a, b) for x, y in pairs for a, b in zip(x[:4], y[:4], strict=True))


@pytest.mark.parametrize("repeats", [1, 3])
def test_same_batches_for_any_number_of_workers(repeats: int) -> None:
    def run(workers: int) -> list[list[Batch]]:
        options = {"batch_size": 4, "seed": 7, "train": True, "workers": workers, "repeats": repeats}
        return epochs(EpochLoader(Numbers(18), noisy, **options), (0, 0), (1, 2), (0, 3))

    alone, one, two = run(0), run(1), run(2)
    assert all(equal(a, b) and equal(a, c) for a, b, c in zip(alone, one, two, strict=True))


def test_resuming_gives_the_rest_of_the_epoch_without_decoding_the_start() -> None:
    whole = epochs(EpochLoader(Numbers(20), noisy, batch_size=3, seed=1, train=True), (0, 0), (5, 0))
    dataset = Numbers(20)
    (rest,) = epochs(EpochLoader(dataset, noisy, batch_size=3, seed=1, train=True), (5, 4))
    assert equal(rest, whole[1][4:])
    assert len(dataset.decoded) == 20 - 4 * 3


def test_leaving_an_epoch_early_does_not_leak_into_the_next_with_workers() -> None:
    loader = EpochLoader(Numbers(20), noisy, batch_size=2, train=True, workers=2)
    loader.set_position(0)
    next(iter(loader))
    (after,) = epochs(loader, (1, 0))
    (clean,) = epochs(EpochLoader(Numbers(20), noisy, batch_size=2, train=True), (1, 0))
    assert equal(after, clean)


def test_epochs_seeds_and_repeats_differ() -> None:
    def first(seed: int, epoch: int) -> Tensor:
        loader = EpochLoader(Numbers(40), noisy, batch_size=40, seed=seed, train=True)
        loader.set_position(epoch)
        batch = next(iter(loader))
        return batch.images[batch.indices.argsort()].flatten()

    same = first(0, 0)
    assert torch.equal(same, first(0, 0))
    for other in (first(1, 0), first(0, 1)):
        assert (same != other).all()
    (batch,) = EpochLoader(Numbers(3), noisy, batch_size=3, repeats=3, train=True)
    assert batch.indices.unique().numel() == 1
    assert batch.images[:, 0, 0, 0].unique().numel() == 3


def test_the_random_state_of_the_process_is_untouched() -> None:
    loader = EpochLoader(Numbers(6), noisy, batch_size=2, train=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    batches = list(loader)
    assert len(batches) == 3
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_evaluation_keeps_the_order_and_the_last_batch() -> None:
    batches = list(EpochLoader(Numbers(7), noisy, batch_size=3))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(7))
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert batches[0].images.shape == (3, 3, 2, 2)


def test_training_visits_everything_once_in_a_new_order() -> None:
    orders = [epoch_order(50, seed=0, epoch=epoch, shuffle=True)[:, 0].tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_drop_last_and_length() -> None:
    dropping = EpochLoader(Numbers(10), noisy, batch_size=4, train=True, multiple=4)
    assert (len(dropping), len(list(dropping))) == (2, 2)
    keeping = EpochLoader(Numbers(10), noisy, batch_size=4, train=True)
    assert (len(keeping), [len(batch.indices) for batch in keeping]) == (3, [4, 4, 2])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("length", [10, 700])
def test_repeats_are_dealt_out_as_timm_does(world: int, length: int) -> None:
    for rank in range(world):
        theirs = RepeatAugSampler(range(length), num_replicas=world, rank=rank, shuffle=False)
        ours = epoch_order(length, seed=0, epoch=0, shuffle=False, repeats=3, rank=rank, world_size=world)
        assert ours[:, 0].tolist() == list(theirs)


def test_repeats_differ_across_processes() -> None:
    rows = [epoch_order(600, seed=0, epoch=0, shuffle=True, repeats=3, rank=rank, world_size=3) for rank in range(3)]
    # All three copies of an image, each with its own repeat number, meet in the same step on different processes.
    assert torch.equal(rows[0][:, 0], rows[1][:, 0])
    assert {int(row[0, 1]) for row in rows} == {0, 1, 2}


@pytest.mark.parametrize("length", [10, 11, 12])
def test_processes_share_the_data(length: int) -> None:
    train = [epoch_order(length, seed=0, epoch=0, shuffle=True, rank=rank, world_size=3)[:, 0] for rank in range(3)]
    assert {len(part) for part in train} == {4}
    assert set(torch.cat(train).tolist()) == set(range(length))
    evaluation = [
        epoch_order(length, seed=0, epoch=0, shuffle=False, rank=rank, world_size=3)[:, 0] for rank in range(3)
    ]
    assert sorted(torch.cat(evaluation).tolist()) == list(range(length))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_named(tmp_path: Path, workers: int) -> None:
    (tmp_path / "a").mkdir()
    for number in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "4.png").write_bytes(b"\x89PNG")
    loader = EpochLoader(open_dataset(tmp_path, "all"), noisy, batch_size=2, workers=workers)

    def complaint() -> str:
        try:
            list(loader)
        except DataError as error:
            return str(error)
        return ""

    assert re.match(r"cannot read image '.*4\.png': ", complaint())


def without_mask(image: Image.Image, target: int) -> tuple[Tensor, int]:
    raise DataError("no mask for this image")


def test_a_fault_that_the_transform_finds_comes_without_a_traceback() -> None:
    with pytest.raises(DataError, match=r"\Aimage '.+': no mask for this image\Z"):
        list(EpochLoader(Numbers(4), without_mask, batch_size=2, workers=1))


def test_workers_leave_at_once_when_the_loader_is_dropped() -> None:
    gc.disable()  # reference counting alone must do
    try:
        others = set(multiprocessing.active_children())
        loader = EpochLoader(Numbers(8), noisy, batch_size=2, workers=1)
        assert len(list(loader)) == 4
        (worker,) = set(multiprocessing.active_children()) - others
        del loader
        assert worker.exitcode == 0, "the worker was told to leave, not killed"
    finally:
        gc.enable()


SIGNALLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_loader import EpochLoader, Numbers, noisy
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
signal.signal(signal.SIGINT, lambda *_: print("told", flush=True))
batches = iter(EpochLoader(Numbers(40), noisy, batch_size=2, workers=2))
next(batches), next(batches)  # one of each worker: both have started
os.killpg(0, signal.SIGTERM)
os.killpg(0, signal.SIGINT)
print(sum(1 for _ in batches))
"""


def test_signals_to_the_process_group_leave_the_workers_alone() -> None:
    code = SIGNALLED.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        # Without warnings: on one core torch advises against workers.
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["told", "told", "18"], "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -4}, "batch_size must be at least 1, got -4"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"rank": 1}, "rank must lie in"),
        ({"batch_size": 9, "multiple": 9}, "batch_size 9 is larger than the 5 samples"),
        ({"batch_size": 1, "rank": 6, "world_size": 7}, "5 samples are fewer than the 7 processes"),
    ],
)
def test_refused_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EpochLoader(Numbers(5), noisy, **{"batch_size": 2, **options})


def test_positions_outside_an_epoch_are_refused() -> None:
    loader = EpochLoader(Numbers(5), noisy, batch_size=2)
    with pytest.raises(ConfigError, match="no batch 4 in epoch 0: an epoch has 3 batches"):
        loader.set_position(0, 4)
    with pytest.raises(DataError, match="is empty"):
        EpochLoader(Numbers(0), noisy, batch_size=2)


def in_time(code: str) -> subprocess.CompletedProcess[str]:
    """Run code beside these tests, for at most a minute: what it tests used to wait for ever."""
    start = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_loader import *\n"
    command = [sys.executable, "-W", "ignore", "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


class Fatal(Numbers):
    """Whoever decodes image 2 is killed, as by a system that is short of memory."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def without_pickle(image: Image.Image, target: int) -> tuple[Tensor, object]:
    return noisy(image, target)[0], lambda: target


# Whether the process learns of a death by a signal or by a connection that ends, is refused or is gone is a matter of
# luck; a signal that comes while the error is printed makes Python print its repr.
DIED = r"DataError.*the decoding processes cannot go on \((DataLoader worker|\[Errno|EOFError).*use fewer workers"

FAILURES = {
    "shared memory is full": (
        "def full(storage): raise RuntimeError('unable to allocate shared memory: No space left on device (28)')\n"
        "torch.UntypedStorage._share_fd_cpu_ = torch.UntypedStorage._share_filename_cpu_ = full\n"
        "list(EpochLoader(Numbers(8), noisy, batch_size=2, workers=1))",
        r"DataError: a decoding process cannot hand over its batch \(unable to allocate .*\(28\)\).*use fewer workers",
    ),
    "targets that cannot travel": (
        "list(EpochLoader(Numbers(8), without_pickle, batch_size=2, workers=1))",
        r"(PicklingError|AttributeError): .*DataLoader worker process 0",
    ),
    "a killed worker": (
        "list(EpochLoader(Fatal(8), noisy, batch_size=2, workers=1))",
        DIED,
    ),
    "a worker killed while nobody waits": (
        "import time\n"
        "with worker_failures():\n"
        "    for batch in EpochLoader(Fatal(8), noisy, batch_size=1, workers=2): time.sleep(3)",
        DIED,
    ),
}


QUICK = "a killed worker"  # each starts two processes


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == QUICK else [pytest.mark.slow]) for case in FAILURES]
)
def test_what_happens_to_a_worker_is_an_error_and_no_wait(case: str) -> None:
    code, message = FAILURES[case]
    done = in_time(code)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_workers_start_while_another_thread_reads_a_tiff() -> None:
    done = in_time(
        "import threading\n"
        "from vision_ssm.data.pillow import silent_libtiff\n"
        "inside, leave = threading.Event(), threading.Event()\n"
        "tiff = Image.new('RGB', (2, 2)); tiff.format = 'TIFF'\n"
        "def read():\n"
        "    with silent_libtiff(tiff): inside.set(); leave.wait(50)\n"
        "threading.Thread(target=read).start()\n"
        "inside.wait(50)\n"
        "class Speaking(Numbers):\n"
        "    def __getitem__(self, index):\n"
        "        os.write(2, b'heard '); return super().__getitem__(index)\n"
        "print(len(list(EpochLoader(Speaking(4), noisy, batch_size=2, workers=1))))\n"
        "leave.set()"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "heard " * 4)
