"""Workers that are actors of a Ray cluster.

Plain actors, not Ray Data: a piece of a job is a file of the output, which Ray Data, that cuts and joins blocks as it
likes, does not promise; with its own retries a block that failed on a dying node may come twice or in other company,
and batches of other images round differently. Here a piece is done by one actor, as a process of one machine does it,
and what is there is known by the files alone. Actors are not restarted by Ray: `carry_out` gives the piece to another
one, since an actor that waits for the place of a dead node may wait for ever while others are idle.
"""

from __future__ import annotations

import os
from typing import Any

from vision_ssm.errors import ConfigError, VisionSSMError, notify
from vision_ssm.inference.jobs.crew import AnyBench, AnyWork, Report
from vision_ssm.inference.jobs.plan import Piece

__all__ = ["RayCrew"]

_PATIENCE = 30.0  # seconds


class RayCrew:
    """An actor for each worker, on one processor or one GPU of the cluster.

    What this process joins or starts is left in the end; a cluster that it was in before stays joined.

    Args:
        work: what is done; files that it names must be found under the same whole paths on every machine.
        address: of a cluster, ``auto`` for the one that this machine is part of; None starts one of this machine alone.
        workers: how many there will be at a time; None for as many as the cluster has places.
        device: of all; None for what there is.

    Attributes:
        workers: how many there will be.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self, work: AnyWork, address: str | None = None, workers: int | None = None, device: str | None = None
    ) -> None:
        self._ray = ray = _ray()
        self._joined = not ray.is_initialized()
        if self._joined:
            try:
                ray.init(
                    address=address or "local",
                    num_cpus=workers if address is None else None,
                    include_dashboard=False if address is None else None,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"cannot join the Ray cluster at {address!r}: {error}") from error
        there_is = ray.cluster_resources()
        gpus = int(there_is.get("GPU", 0)) if device is None or device.startswith("cuda") else 0
        self.workers = workers or gpus or max(1, int(there_is.get("CPU", 1)))
        needs = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
        self._hire: Any = lambda: ray.remote(_Actor).options(max_restarts=0, **needs).remote(work, device)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}
        self._hired = 0

    def hire(self) -> int:
        """Ask for an actor; the cluster makes it when it has a place."""
        number, self._hired = self._hired, self._hired + 1
        self._actors[number] = self._hire()
        self._pending[self._actors[number].ready.remote()] = number
        return number

    def give(self, worker: int, piece: Piece) -> None:
        """Call its method; if it has ended, `wait` tells."""
        self._pending[self._actors[worker].content.remote(piece)] = worker

    def wait(self) -> list[Report]:
        """Fetch what is ready."""
        done, _ = self._ray.wait(list(self._pending), timeout=_PATIENCE)
        if not done and not self._ray.cluster_resources().get("CPU"):
            notify("the Ray cluster has no processors at the moment; waiting for some to join.")
        return [self._fetched(reference, self._pending.pop(reference)) for reference in done]

    def dismiss(self) -> None:
        """End the actors, and leave the cluster if it was joined for this."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._pending.clear()
        if self._joined:
            self._ray.shutdown()

    def _fetched(self, reference: Any, number: int) -> Report:
        try:
            return Report(number, self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VisionSSMError):
                return Report(number, error=error.cause)
            return Report(number, error=RuntimeError(str(error)))
        except self._ray.exceptions.RayError as error:  # actor, node or result lost
            self._ray.kill(self._actors.pop(number))
            return Report(number, gone=str(error).strip().partition("\n")[0].rstrip(". "))


class _Actor:
    """A worker: opens the model when it starts."""

    def __init__(self, work: AnyWork, device: str | None) -> None:
        self._work, self._device = work, device
        self._bench: AnyBench | None = None

    def ready(self) -> None:
        # Not in __init__, whose errors Ray takes for the death of the actor.
        self._bench = self._work.open(self._device)

    def content(self, piece: Piece) -> bytes:
        if self._bench is None:
            raise RuntimeError("an actor is asked for a piece before it is ready")
        return self._bench.content(piece)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every start
    try:
        import ray
    except ImportError as error:
        raise ConfigError("the engine ray needs Ray: pip install 'vision-ssm[ray]'.") from error
    return ray
