"""Batches whose content is a pure function of (seed, epoch, position).

Order and augmentation never depend on the number of workers, on what was loaded before, or on the state of the global
random generators; so a run that resumes in the middle of an epoch sees exactly what the uninterrupted run saw.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vision_ssm import moved
from vision_ssm.data.balance import balanced_order
from vision_ssm.data.batches import Batch, Sample, Samples, Transform, stack
from vision_ssm.data.images import decoding
from vision_ssm.errors import ConfigError, DataError, UnreadableError

__all__ = ["EpochLoader", "epoch_order", "samples_of_epoch", "worker_failures"]

moved.answer(__name__)


class _Draw(NamedTuple):
    """One sample to load: its position, and the epoch and repeat that its augmentation is drawn for."""

    sample: int
    epoch: int
    repeat: int


class EpochLoader:
    """Iterate over one epoch at a time; ``len()`` is the number of batches of a whole epoch.

    Iterating starts at the position last set (epoch 0, batch 0 at first) and ends with the epoch:

        loader.set_position(epoch, start_batch)   # skipped batches are not decoded
        for batch in loader: ...

    Args:
        dataset: the samples.
        transform: of each sample; what it draws at random depends on seed, epoch and position only.
        collate: samples to a batch, see `stack`.
        batch_size: samples per batch on this process.
        seed: of order and augmentation.
        train: shuffle. Otherwise the order is that of the data set, and with several processes each takes every
            ``world_size``-th sample, none twice.
        multiple: an epoch has a multiple of so many samples over all processes, and the rest is dropped; batch_size ×
            world_size drops an incomplete last batch. None drops nothing.
        workers: decoding processes; 0 decodes in this one. The batches are the same for any number.
        rank: of this process.
        world_size: number of processes.
        repeats: repeated augmentation, as in DeiT: see `epoch_order`.
        groups: a group per sample; when training every group comes equally often, see `epoch_order`. None: every
            sample comes once.

    Raises:
        ConfigError: a number is out of its range, or the epoch would have no batch.
        UnreadableError: while iterating, naming the file that could not be read.
        DataError: while iterating, saying why the decoding processes
            cannot go on. See `worker_failures` for those that end while nobody waits for them.
    """

    def __init__(
        self,
        dataset: Samples,
        transform: Transform,
        *,
        collate: Callable[[Sequence[Sample]], Batch] = stack,
        batch_size: int,
        seed: int = 0,
        train: bool = False,
        multiple: int | None = None,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
        groups: Sequence[int] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
            ("world_size", world_size, 1),
            ("repeats", repeats, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}.")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must lie in [0, {world_size}), got {rank}.")
        if len(dataset) == 0:
            raise DataError(f"data set {dataset.name!r} is empty.")
        self.dataset = dataset
        self.batch_size = batch_size
        order = functools.partial(
            epoch_order,
            len(dataset),
            seed=seed,
            shuffle=train,
            repeats=repeats,
            groups=None if groups is None else torch.tensor(groups),
            rank=rank,
            world_size=world_size,
        )
        kept = None if multiple is None else samples_of_epoch(len(dataset), repeats) // multiple * multiple
        self._plan = _BatchPlan(order, batch_size, None if kept is None else kept // world_size)
        if len(self) == 0 and world_size > 1 and len(dataset) < world_size:
            raise ConfigError(
                f"{len(dataset):,} samples are fewer than the {world_size} processes, of which each needs one; use "
                "fewer processes, or more data."
            )
        if len(self) == 0:
            raise ConfigError(
                f"batch_size {batch_size} is larger than the {self.samples} samples that each epoch has on this "
                "process, and incomplete batches are dropped; use a smaller batch size."
            )
        self._loader = DataLoader(
            _Samples(dataset, transform, seed),
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_Collate(collate, packed=workers > 0),
            worker_init_fn=_start_worker if workers else None,
            persistent_workers=workers > 0,
            # Its own generator: DataLoader would otherwise draw from the global one at every start of an epoch.
            generator=torch.Generator(),
        )

    @property
    def samples(self) -> int:
        """Samples per epoch on this process, before any are dropped."""
        return self._plan.samples

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration yields: the batches of ``epoch`` from ``start_batch`` on.

        Raises:
            ConfigError: there is no such batch.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ConfigError(f"no batch {start_batch} in epoch {epoch}: an epoch has {len(self)} batches.")
        self._plan.epoch, self._plan.start = epoch, start_batch

    def __len__(self) -> int:
        return self._plan.batches

    def __iter__(self) -> Iterator[Batch]:
        from_workers = self._loader.num_workers > 0
        with worker_failures(waiting=from_workers):
            batches = iter(self._loader)
        while True:
            with worker_failures(waiting=from_workers):
                loaded = next(batches, None)
            if loaded is None:
                return
            if isinstance(loaded, DataError):
                raise type(loaded)(*loaded.args)  # a new one: a local variable would tie this frame into a cycle
            yield loaded


class _BatchPlan:
    """The batch sampler of the DataLoader: it carries the position, so that worker processes need no state.

    It must not know the EpochLoader: in a cycle of references the queues to the workers would be torn down before the
    message that ends them, and each worker would then hold up the process for seconds.
    """

    def __init__(self, order: Callable[..., Tensor], batch_size: int, kept: int | None) -> None:
        self._order, self._batch_size = order, batch_size
        self.samples = len(order(epoch=0))
        full, rest = divmod(self.samples if kept is None else kept, batch_size)
        self.batches = full + (rest > 0 and kept is None)
        self.epoch, self.start = 0, 0

    def __iter__(self) -> Iterator[list[_Draw]]:
        epoch, start = self.epoch, self.start
        rows = self._order(epoch=epoch).tolist()
        for batch in range(start, self.batches):
            chunk = rows[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield [_Draw(index, epoch, repeat) for index, repeat in chunk]

    def __len__(self) -> int:
        return self.batches - self.start


class _Samples(Dataset[object]):
    """Load a batch of draws at a time, each with its own randomness."""

    def __init__(self, dataset: Samples, transform: Transform, seed: int) -> None:
        self._dataset, self._transform, self._seed = dataset, transform, seed

    def __getitems__(self, draws: Sequence[_Draw]) -> list[Sample] | DataError:
        samples = []
        # Without workers this is the training process: its own random state must come out untouched.
        with _kept_random_state():
            for draw in draws:
                try:
                    image, target = self._dataset[draw.sample]
                    _seed_all(self._seed, *draw)
                    with decoding():
                        try:
                            prepared = self._transform(image, target)
                        except DataError as error:  # transforms know images, not files
                            raise DataError(f"image {self._dataset.paths[draw.sample]!r}: {error}") from error
                    samples.append(Sample(*prepared, image.size[::-1], draw.sample))
                except DataError as error:
                    return UnreadableError(*error.args)  # returned, as DataLoader would bury it in a worker's traceback
        return samples

    def __getitem__(self, draw: _Draw) -> object:
        return self.__getitems__([draw])


class _Collate:
    """Put samples together, and pass an error through.

    In a worker the batch is also pickled, its tensors put into shared memory. Left to the queue, a helper thread would
    do that, print what goes wrong, and let everyone wait for the batch that was lost.
    """

    def __init__(self, collate: Callable[[Sequence[Sample]], Batch], *, packed: bool) -> None:
        self._collate, self._packed = collate, packed

    def __call__(self, samples: list[Sample] | DataError) -> Batch | DataError | _Packed:
        if isinstance(samples, DataError):
            return samples
        batch = self._collate(samples)
        if not self._packed:
            return batch
        try:
            return _Packed(bytes(ForkingPickler.dumps(batch)))
        except (OSError, RuntimeError) as error:  # torch says RuntimeError when shared memory is full
            return DataError(f"a decoding process cannot hand over its batch ({_first_line(error)}); {_ADVICE}.")


class _Packed:
    """A pickled batch, which becomes the batch when it is received."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return ForkingPickler.loads, (self._content,)


_ADVICE = (
    "batches travel in shared memory (/dev/shm): use fewer workers (data.workers; 0 needs none) or smaller batches, "
    "give it more (docker run --shm-size), or raise the limit of open files (ulimit -n)"
)


@contextmanager
def worker_failures(*, waiting: bool = False) -> Iterator[None]:
    """Within the block, the end of a decoding process is a DataError; torch raises it wherever the program is.

    Args:
        waiting: these processes are being started or waited for, so whatever the system refuses is about them.

    Raises:
        DataError: a process was killed, or ended by itself, or the system gives no more of what they need.
    """
    try:
        yield
    except RuntimeError as error:
        about_them = "DataLoader worker (pid" in str(error) or (waiting and "Too many open files" in str(error))
        if not about_them or _is_of_a_transform(error):
            raise
        raise DataError(f"the decoding processes cannot go on ({_first_line(error)}); {_ADVICE}.") from error
    except (OSError, EOFError) as error:
        if not waiting or _is_of_a_transform(error):
            raise
        raise DataError(f"the decoding processes cannot go on ({_first_line(error)}); {_ADVICE}.") from error


def _is_of_a_transform(error: BaseException) -> bool:
    """Tell whether torch has carried the error over from a worker that is alive."""
    return str(error).startswith("Caught ")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0].rstrip(". ")


def samples_of_epoch(length: int, repeats: int = 1) -> int:
    """Return how many samples an epoch of training has at most, over all processes, see `epoch_order`."""
    return length // 256 * 256 if repeats > 1 and length >= 256 else length


def epoch_order(
    length: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool,
    repeats: int = 1,
    groups: Tensor | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Return what one process loads in one epoch: rows of (index, repeat), int64 [M, 2].

    With ``repeats`` above 1 each drawn sample comes that many times, differently augmented, while the epoch keeps its
    length: it visits 1/repeats of the data. The copies are dealt out to the processes in turn, and the epoch's length
    is rounded down to a multiple of 256 samples where there are as many. When training on several processes without
    repeats, the order wraps around so that all processes get equally many (`EpochLoader` with a ``multiple`` stops
    before that); when evaluating, none comes twice.

    The processes take turns: what W of them have loaded after n samples each are the first W n of the epoch's order,
    which is the same for any number of them.

    With ``groups`` [length] a shuffled epoch keeps its length and every group comes equally often in it, see
    `vision_ssm.data.balance.balanced_order`. What comes again has a repeat of its own, so it is augmented anew.

    Source: repeated augmentation as in DeiT (arXiv:2012.12877), timm.data.distributed_sampler.RepeatAugSampler. The
    order here depends on the seed as well as on the epoch.
    """
    if shuffle:
        generator = torch.Generator().manual_seed(_hash(seed, epoch)[0])
        order, again = (
            (torch.randperm(length, generator=generator), torch.zeros(length, dtype=torch.int64))
            if groups is None
            else balanced_order(groups, generator)
        )
    else:
        order, again = torch.arange(length), torch.zeros(length, dtype=torch.int64)
    if repeats > 1:
        rounded = samples_of_epoch(length, repeats)
        taken = rounded // world_size if length >= 256 else -(-length // world_size)
    elif shuffle:
        taken = -(-length // world_size)
    else:
        taken = len(range(rank, length, world_size))
    positions = (rank + world_size * torch.arange(taken)) % (length * repeats)
    at = positions // repeats
    return torch.stack([order[at], again[at] * repeats + positions % repeats], dim=1)


@contextmanager
def _kept_random_state() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _seed_all(*key: int) -> None:
    python, legacy, pytorch = _hash(*key)
    random.seed(python)
    np.random.seed(legacy % 2**32)
    # Not torch.manual_seed, which would reseed the GPUs too.
    torch.default_generator.manual_seed(pytorch)


def _hash(*key: int) -> tuple[int, int, int]:
    # Neighbouring keys must give unrelated streams: a sum of seed and index would repeat itself over epochs.
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=24).digest()
    python, legacy, pytorch = struct.unpack("<3Q", digest)
    return python, legacy, pytorch >> 1


def _start_worker(worker: int) -> None:
    # Each worker is one process per core already.
    torch.set_num_threads(1)
    # Ctrl-C and `timeout` signal the whole process group; the training process decides when its workers stop. They
    # must still heed a SIGTERM of their own: that is how multiprocessing ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
