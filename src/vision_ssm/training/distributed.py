"""The processes of a run: one, or as many as torchrun started. The engine asks here and never looks at ranks itself.

How the model is spread over them is decided here: whole on every process with averaged gradients (DDP), or in shards
(FSDP2, `vision_ssm.training.sharding`). `gather` is where processes meet outside of the exchange of gradients, and
where the failure of one becomes known to all.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from vision_ssm.device import choose_device
from vision_ssm.errors import ProcessError, VisionSSMError
from vision_ssm.training.sharding import evaluated, shard
from vision_ssm.training.watch import Notes, Watch

__all__ = ["Processes", "restarts"]

Parallel = Literal["ddp", "fsdp"]

BYTES_PER_PARAMETER = 20
"""Of a copy in training: parameter, gradient, two moments and the average, in float32."""


def restarts() -> int:
    """How often torchrun has started this run anew because a process of it had ended (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if dist.is_torchelastic_launched() else 0


@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Attributes:
        watch: ends this process when it makes no progress; None alone.
        kept: by torchrun for as long as it runs, through all attempts; None without it.
    """

    rank: int
    world: int
    device: torch.device
    watch: Watch | None = None
    kept: Notes | None = None

    @classmethod
    @contextmanager
    def join(cls, device: str, seconds: float = 600.0) -> Iterator[Processes]:
        """Join the group that torchrun announced, or the one that exists already; alone otherwise.

        Args:
            device: "auto" or a torch device; "cuda" without a number means the one with this process's local number.
            seconds: without progress, after which a process ends itself (`Watch`).

        Raises ConfigError for a device that is not here, ProcessError when the processes do not find each other.
        """
        launched = dist.is_available() and dist.is_torchelastic_launched()
        started_here = launched and not dist.is_initialized()
        kept = _meet(seconds) if launched else None
        try:
            if dist.is_available() and dist.is_initialized():
                rank, world = dist.get_rank(), dist.get_world_size()
                local_rank = dist.get_node_local_rank(fallback_rank=rank)
                notes = None if kept is None else _of_this_attempt(kept)
                watch = Watch(rank, world, seconds, notes) if world > 1 else None
                yield cls(rank, world, _own_device(device, local_rank), watch, kept)
            else:
                yield cls(0, 1, _own_device(device, 0))
        finally:
            if started_here:
                dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    # --------------------------------------------------------------------------------------------------- the model
    def way(self, asked: Literal["auto", "ddp", "fsdp"], parameters: int) -> Parallel:
        """How a model of so many parameters is spread: ``auto`` shards what would take half of a GPU for its copies."""
        if asked != "auto":
            return asked
        if self.device.type != "cuda":
            return "ddp"
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return "fsdp" if 2 * BYTES_PER_PARAMETER * parameters > memory else "ddp"

    def spread(
        self,
        models: Sequence[nn.Module],
        backbones: Sequence[nn.Module],
        way: Parallel,
        *,
        sync_batch_norm: bool,
        unused_parameters: bool,
    ) -> nn.Module:
        """Return the first of the models as training calls it: gradients are averaged over the processes.

        Args:
            models: the one that is trained, and its moving average if there is one, on their device. With ``fsdp``
                their parameters are shards from now on, so an optimiser is made afterwards.
            backbones: the part of each that is cut block by block.
            way: see `way`.
            sync_batch_norm: whether batch norms take their statistics over all processes. PyTorch can on GPUs only;
                elsewhere they keep each process's own.
            unused_parameters: whether a step may leave parameters without a gradient.
        """
        model = models[0]
        if self.world == 1:
            return model
        on_gpu = self.device.type == "cuda"
        if sync_batch_norm and on_gpu:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if way == "fsdp":
            for each, backbone in zip(models, backbones, strict=True):
                shard(each, backbone, self.device, self.world, unused_parameters=unused_parameters)
            return model
        # PyTorch's depthwise convolutions give gradients whose dimension of one channel has another stride than the
        # weight's, though both lie in memory alike. Every process would tell of it, at the first update.
        warnings.filterwarnings("ignore", message="Grad strides do not match")
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if on_gpu else None,
            find_unused_parameters=unused_parameters,
            gradient_as_bucket_view=True,  # else what is exchanged is a second copy of the gradients
        )

    def accumulating(self, model: nn.Module, more_to_come: bool) -> AbstractContextManager[Any]:
        """Skip the exchange of gradients while more batches of the same update are to come.

        Shards exchange every time: what they would save up is the whole gradient on every process.
        """
        if more_to_come and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return nullcontext()

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Within the block ``model`` is whole on every process, with the main one's statistics of batch norms.

        So the processes need not call it equally often.
        """
        self.agree(model)
        with evaluated(model) if self.world > 1 else nullcontext():
            yield

    def agree(self, model: nn.Module) -> None:
        """Give every process the buffers of the main one: batch norms have seen other images on each."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    # -------------------------------------------------------------------------------------------------- exchanges
    def mean(self, values: Tensor) -> Tensor:
        """Element-wise mean over the processes."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world

    def gather(self, value: Any) -> list[Any]:
        """The picklable ``value`` of every process, by rank.

        Raises ProcessError where another process is in `together` and has failed.
        """
        if self.world == 1:
            return [value]
        return self._exchange(value, None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block an error of one process is an error of all, which names the processes and their reasons.

        The block may `gather`; it must not exchange otherwise, and be the same on every process.
        """
        if self.world == 1:
            yield
            return
        try:
            yield
        except ProcessError:  # of another process, known to all
            raise
        except VisionSSMError as error:
            told = self._failing(error)
            if told is None:  # the same on all: as on one
                error.is_shared = True
                raise
            raise told from error
        else:
            self._exchange(None, None)

    def _failing(self, error: VisionSSMError) -> ProcessError | None:
        """Tell the others of an error; what all of them raise, None where they all have this one."""
        try:
            self._exchange(None, error)
        except ProcessError as told:
            return None if told.same else told
        return None

    def _exchange(self, value: Any, problem: VisionSSMError | None) -> list[Any]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, (value, None if problem is None else str(problem)))
        problems = {rank: text for rank, (_, text) in enumerate(found) if text is not None}
        if problems:
            raise ProcessError(problems, self.world)
        return [each for each, _ in found]

    def at(self, place: str) -> None:
        """Say where this process is, as a sign of progress and for the message when it is the last one."""
        if self.watch is not None:
            self.watch.at(place)

    # --------------------------------------------------------------------------------------------------- attempts
    def note_begun(self, folder: Path) -> None:
        """Let later attempts of this torchrun know that the run in ``folder`` is its own."""
        if self.is_main and self.kept is not None:
            self.kept.set(_begun(folder), str(os.getpid()))

    def has_begun(self, folder: Path) -> bool:
        """Whether an earlier attempt of this torchrun began the run in ``folder``. All processes must ask."""
        known = False
        if self.is_main and self.kept is not None and self.kept.check([_begun(folder)]):
            known = self.kept.get(_begun(folder)).decode() != str(os.getpid())  # else a script trains twice
        return bool(self.gather(known)[0])


def _begun(folder: Path) -> str:
    return f"begun {folder}"


def _meet(seconds: float) -> Notes:
    """Make the group that torchrun announced, unless there is one; returns what torchrun keeps for its processes."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    # The watch comes first, and says where everyone is.
    patience = datetime.timedelta(seconds=2 * seconds + 30)
    try:
        store, rank, world = next(rendezvous("env://", timeout=datetime.timedelta(seconds=seconds)))
        if not dist.is_initialized():
            own = _of_this_attempt(store)
            with Watch(rank, world, seconds, own) as watch:
                watch.at("meeting the other processes")
                dist.init_process_group(store=own, rank=rank, world_size=world, timeout=patience)
    except (dist.DistError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        advice = "free the port or choose another one (torchrun --master-port)" if "in use" in reason else None
        raise ProcessError(
            {int(os.environ.get("RANK", "0")): f"cannot join the other processes at {where}: {reason}"},
            int(os.environ.get("WORLD_SIZE", "1")),
            advice=advice or f"is each of them started, and {where} reachable from here?",
            is_shared=False,
        ) from error
    return store  # type: ignore[no-any-return]


def _of_this_attempt(store: Any) -> Any:
    # torchrun keeps one store for all attempts, where the addresses of the processes that ended still are.
    return dist.PrefixStore(f"attempt {restarts()}", store)  # type: ignore[attr-defined]


def _own_device(name: str, local_rank: int) -> torch.device:
    device = choose_device(name)
    if device.type == "cuda" and device.index is None:
        device = choose_device(f"cuda:{local_rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
