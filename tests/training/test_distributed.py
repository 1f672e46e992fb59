"""Several real processes over gloo: the same run as one process, on however many it goes on, and what ends it."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.training.processes import Job, run, saved
from vision_ssm.errors import ConfigError
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.events import RunStarted
from vision_ssm.training.watch import NO_PROGRESS, Watch

Tiny = Callable[..., TrainConfig]

# No randomness but the order: two processes draw other mixing ratios and drop paths than one.
PLAIN = {
    "augment.crop": "none",
    "augment.hflip": 0.0,
    "optim.accumulate": 4,  # 6 batches of an epoch: its last update has 2
    "optim.clip_grad": 0.5,
    "optim.lr": 1e-3,
    "ema.decay": 0.5,
}

ROUNDING = 2e-5
"""Relative to the largest number of a tensor. A sum over a batch that is cut in two and added up again differs by
some units of float32 (6e-8); Adam divides by a root and the next updates go on with it: some hundreds of them."""


TWENTY = 1e-3
"""After twenty updates: where a gradient is next to nothing, Adam's quotient is of rounding alone, and moves a weight
by up to the learning rate."""


def assert_close(one: dict[str, Any], other: dict[str, Any], bound: float = ROUNDING) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            largest = float(value.abs().max())
            assert float((value - other[name]).abs().max()) <= bound * largest + 1e-12, name
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


def fine(found: dict[int, tuple[str | None, int]], world: int) -> bool:
    """All came to an end, and only the main one had events."""
    return [found[rank][0] for rank in range(world)] == [None] * world and not any(
        found[rank][1] for rank in range(1, world)
    )


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_are_one_run(tiny: Tiny, tmp_path: Path, way: str) -> None:
    """The model has depthwise convolutions, whose gradients are laid out otherwise than their weights."""
    values = {**PLAIN, "model.name": "vig_nano", "model.options": {"patch_size": 4, "embed_dim": 32, "depth": 2}}
    alone = tiny(**values, **{"data.batch_size": 6, "run.name": "alone"})
    result = train(alone)
    both = tiny(**values, **{"data.batch_size": 3, "run.name": way, "run.parallel": way})
    assert fine(run(Job(both), 2, tmp_path), 2)
    assert_close(saved(alone.run_folder), {**saved(both.run_folder)})
    assert result.updates == saved(both.run_folder)[".progress.update"] == 4


def test_a_state_goes_from_any_processes_to_any_others(tiny: Tiny, tmp_path: Path) -> None:
    """Shards to whole copies and back: weights, average and optimiser to the bit; then one process ends the run as one
    would have all along."""
    alone = tiny(**PLAIN, **{"data.batch_size": 6, "run.name": "alone"})
    train(alone)
    config = tiny(**PLAIN, **{"data.batch_size": 3, "run.name": "moved", "run.parallel": "fsdp"})
    folder = config.run_folder
    assert fine(run(Job(config, kind="stop", at=1), 2, tmp_path), 2)
    begun = saved(folder)
    assert (begun[".progress.step"], begun[".processes"], (folder / "last.ckpt").is_dir()) == (1, 2, True)
    again = config.replace(**{"run.resume": str(folder)})
    for way in ("ddp", "fsdp"):
        assert fine(run(Job(again.replace(**{"run.parallel": way}), kind="save"), 2, tmp_path), 2)
        assert_equal(begun, saved(folder))
    train(again)
    assert (folder / "last.ckpt").is_file()
    assert_close(saved(alone.run_folder), saved(folder))


@pytest.mark.parametrize("way", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_resume_on_as_many_processes_is_exact(tiny: Tiny, tmp_path: Path, way: str) -> None:
    """With mixing, crops and dropped paths, in the middle of an epoch."""
    values = {"data.batch_size": 2, "model.options": {"drop_path_rate": 0.3}, "ema.decay": 0.5, "run.parallel": way}
    whole, parts = (tiny(**values, **{"run.name": name}) for name in ("whole", "parts"))
    assert fine(run(Job(whole), 2, tmp_path), 2)
    assert fine(run(Job(parts, kind="stop", at=2), 2, tmp_path), 2)
    assert fine(run(Job(parts.replace(**{"run.resume": str(parts.run_folder)})), 2, tmp_path), 2)
    assert_equal(saved(whole.run_folder), saved(parts.run_folder))


@pytest.mark.parametrize("moment", [(1, "step", 2), (0, "disk", 2)])  # the second: some of the files are there
def test_a_killed_process_costs_no_checkpoint(tiny: Tiny, tmp_path: Path, moment: tuple[int, str, int]) -> None:
    config = tiny(**PLAIN, **{"data.batch_size": 3, "run.parallel": "fsdp", "run.checkpoint_minutes": 0.0})
    folder = config.run_folder
    assert fine(run(Job(config, kind="stop", at=1), 2, tmp_path), 2)
    kept = saved(folder)
    again = config.replace(**{"run.resume": str(folder)})
    ((error, _),) = run(Job(again, killed=moment), 2, tmp_path).values()
    assert error is not None and "lost contact with another process after update" in error
    assert_equal(kept, saved(folder))
    assert fine(run(Job(again), 2, tmp_path), 2)
    assert saved(folder)[".progress.update"] == 4


def test_gradients_lie_where_they_are_exchanged() -> None:
    """Else a process keeps them twice, which docs/scaling.md does not say."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Linear(3, 2)
        processes = Processes(0, 2, torch.device("cpu"))
        parallel = processes.spread([model], [model], "ddp", sync_batch_norm=False, unused_parameters=False)
        parallel(torch.ones(1, 3)).sum().backward()
    finally:
        dist.destroy_process_group()
    assert model.weight.grad is not None and model.bias.grad is not None
    assert model.weight.grad.untyped_storage().data_ptr() == model.bias.grad.untyped_storage().data_ptr()


def test_what_differs_between_processes_is_told_by_rank(tiny: Tiny, images: Path, tmp_path: Path) -> None:
    config = tiny(**PLAIN, **{"data.batch_size": 3})
    fewer = Path(shutil.copytree(images, tmp_path / "fewer"))
    (fewer / "train" / "grey0" / "00.png").unlink()
    for of_rank, told in (
        ({"optim.lr": 0.5}, "ConfigError: rank 1 has optim.lr 0.5, and rank 0 has 0.001. All processes of a run need"),
        ({"data.path": str(fewer)}, "ConfigError: rank 1 has 39 images to train on, and rank 0 has 40: all processes"),
        ({"data.path": str(tmp_path / "none")}, "ProcessError: rank 1 of 2: "),
    ):
        found = run(Job(config, of_rank={1: of_rank}), 2, tmp_path)
        assert found[0][0] == found[1][0] and str(found[0][0]).startswith(told)
    found = run(Job(config, kind="read-only on rank 1"), 2, tmp_path)
    assert found[0][0] == found[1][0] == "ProcessError: rank 1 of 2: cannot write to output folder, it is read-only"
    found = run(Job(config.replace(**{"run.output": "runs"}), kind="a disk each"), 2, tmp_path)
    assert found[0][0] == found[1][0]
    assert str(found[0][0]).startswith("ProcessError: rank 1 of 2: runs/run is another folder here than that of rank 0")
    assert {path.name for path in (tmp_path / "disk0" / "runs" / "run").iterdir()} == {"config.yaml"}
    assert not any((tmp_path / "disk1").iterdir())
    found = run(Job(config, kind="other code on rank 1"), 2, tmp_path)
    assert found[0][0] == found[1][0]
    assert str(found[0][0]).startswith(
        "ConfigError: rank 1 runs other code of vision_ssm than rank 0; install the same"
    )


def test_a_signal_ends_an_evaluation_of_several(tiny: Tiny, tmp_path: Path) -> None:
    """It reaches one process; the other comes to the end of its share, and both leave with the epoch still open."""
    config = tiny(**PLAIN, **{"data.batch_size": 3})
    assert fine(run(Job(config, kind="signal"), 2, tmp_path), 2)
    state = saved(config.run_folder)
    assert (state[".progress.epoch"], state[".progress.step"], state[".progress.update"]) == (0, 2, 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_meeting_place_that_cannot_be_had_is_told(tmp_path: Path, rank: int) -> None:
    """The port of rank 0 is in use by a program that knows nothing of it; or nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        if rank == 1:
            other.close()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
        announced = {**place, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        code = "from vision_ssm.training.distributed import Processes\nwith Processes.join('cpu', 2.0): pass"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **announced}
        )
    assert f"ProcessError: rank {rank} of 2: cannot join the other processes at 127.0.0.1:{port}" in done.stderr
    advice = "free the port or choose another one" if rank == 0 else "is each of them started, and 127.0.0.1"
    assert advice in done.stderr


def test_a_process_without_progress_ends_itself(tmp_path: Path) -> None:
    told = tmp_path / "stderr"
    process = multiprocessing.get_context("forkserver").Process(target=hang, args=(str(told),))
    process.start()
    process.join(60)
    assert process.exitcode == NO_PROGRESS
    assert told.read_text() == (
        "error: rank 1 of 2 has made no progress for 0.4 s (run.timeout): it was at update 5, reading its batch. "
        "When last heard of: rank 0 at update 5, waiting.\n"
    )


def test_a_process_that_hangs_before_the_first_update_ends_itself(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(**PLAIN, **{"data.batch_size": 3})
    job = Job(config, killed=(1, "asleep", 0), of_rank={1: {"run.timeout": 4.0}})
    ((error, _),) = run(job, 2, tmp_path, seconds=30).values()
    assert error is not None and "rank 0 of 2: lost contact with another process after starting" in error
    assert (tmp_path / "stderr").read_text() == (
        "error: rank 1 of 2 has made no progress for 4 s (run.timeout): it was at opening the data.\n"
    )
    assert not config.run_folder.exists()


def hang(stderr: str) -> None:
    os.dup2(os.open(stderr, os.O_CREAT | os.O_WRONLY), 2)
    store = dist.HashStore()
    store.set("watch/0", "update 5, waiting")
    watch = Watch(1, 2, 0.4, store)
    with watch:
        for _ in range(3):
            time.sleep(0.3)
            watch.at("update 5, reading its batch")
        time.sleep(60)


def torchrun(*options: str, seconds: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run ``torchrun`` on this machine with the options, the command's last."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *options],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_restart_goes_on_with_what_this_torchrun_began(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with an older run that is in the way, whether it was to be replaced or not."""
    config = tiny(**{"schedule.epochs": 1})
    train(config)
    store = dist.HashStore()
    alone = Processes(0, 1, torch.device("cpu"), kept=store)
    monkeypatch.setattr(Processes, "join", lambda *_: nullcontext(alone))
    started: list[int | None] = []

    def listen(event: object) -> None:
        started.extend([event.resumed_at] if isinstance(event, RunStarted) else [])

    with pytest.raises(ConfigError, match="already holds a run"):
        train(config)
    again = config.replace(**{"run.overwrite": True})
    train(again, on_event=listen)
    with pytest.raises(ConfigError, match="already holds a run"):  # a script that trains twice, not a restart
        train(config)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    train(again, on_event=listen)
    assert started == [None, 5]


@pytest.mark.slow
def test_torchrun_restarts_a_run(tiny: Tiny, tmp_path: Path) -> None:
    """The process of rank 1 is killed once; the run goes on from its last checkpoint and speaks once."""
    config = tiny(**PLAIN, **{"data.batch_size": 3, "run.checkpoint_minutes": 0.0})
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    script = tmp_path / "script.py"
    script.write_text(DIES_ONCE)
    done = torchrun("--nproc-per-node", "2", "--max-restarts", "1", str(script), "train", "--recipe", str(file))
    assert done.returncode == 0, done.stderr
    assert saved(config.run_folder)[".progress.update"] == 4
    assert "torchrun has started the run anew, for the 1. time" in done.stderr + done.stdout
    assert done.stdout.count("Effective configuration") == 2  # of the main process, each time
    kept = saved(config.run_folder)
    restarted = torchrun("--max-restarts", "1", "-m", "vision_ssm", "train", "--recipe", str(file))
    assert restarted.returncode != 0 and restarted.stderr.count("already holds a run (config.yaml)") == 2
    assert_equal(kept, saved(config.run_folder))
    refused = torchrun("--nproc-per-node", "2", "-m", "vision_ssm", "train", str(tmp_path / "none"))
    assert refused.returncode != 0 and refused.stderr.count("no folder and no data set is called") == 1


DIES_ONCE = """
import os, signal, sys
from vision_ssm.cli.main import main
from vision_ssm.training.engine import Engine

update = Engine.update
def dying(self, *args, **options):
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], self.progress.update) == ("1", "0", 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, *args, **options)
Engine.update = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_four_processes_are_one_run(tiny: Tiny, tmp_path: Path, way: str) -> None:
    """20 updates; then the same on 2, then 4, then one process.

    Of 40 images an epoch has 3 batches of 12, for an update of 2 and one of 1; the 4 that fill no batch are left out.
    """
    values = {**PLAIN, "schedule.epochs": 10, "optim.accumulate": 2, "run.parallel": way}
    alone = tiny(**{**values, "data.batch_size": 12, "run.name": "alone"})
    train(alone)
    four = tiny(**{**values, "data.batch_size": 3, "run.name": "four"})
    assert fine(run(Job(four), 4, tmp_path), 4)
    assert_close(saved(alone.run_folder), saved(four.run_folder), TWENTY)
    config = tiny(**{**values, "data.batch_size": 6, "run.name": "changing"})
    assert fine(run(Job(config, kind="stop", at=5), 2, tmp_path), 2)
    again = config.replace(**{"run.resume": str(config.run_folder)})
    assert fine(run(Job(again, kind="stop", at=12), 4, tmp_path), 4)
    train(again)
    assert saved(config.run_folder)[".progress.update"] == 20
    assert_close(saved(alone.run_folder), saved(config.run_folder), TWENTY)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "everyone"), [("ddp", False), ("fsdp", False), ("fsdp", True)])
def test_ten_kills(tiny: Tiny, tmp_path: Path, way: str, everyone: bool) -> None:
    """Of one process and of all, at random: while a checkpoint is written and renamed, by the clock, before an update.

    None is lost, and in the end the run is to the bit the one that nobody disturbed.
    """
    numbers = random.Random(f"{way} {everyone}")
    values = {"data.batch_size": 3, "run.parallel": way, "run.checkpoint_minutes": 0.0, "schedule.epochs": 20}
    whole, config = (tiny(**PLAIN, **values, **{"run.name": name}) for name in ("whole", "killed"))
    assert fine(run(Job(whole), 2, tmp_path), 2)
    assert fine(run(Job(config, kind="stop", at=1), 2, tmp_path), 2)
    again = config.replace(**{"run.resume": str(config.run_folder)})
    for kill in range(10):
        before = saved(config.run_folder)[".progress.update"]
        rank = -1 if everyone else numbers.randrange(2)
        kind = ("disk", "time", "disk", "step")[kill % 4]
        # The main process brings to disk its tensors, the index, the rest, the folder and names; another its tensors.
        most = {"disk": 3 if rank == 1 else 18, "time": 300, "step": 3}[kind]
        number = numbers.randrange(most) + (before + 1 if kind == "step" else 0)
        run(Job(again, killed=(rank, kind, number)), 2, tmp_path)
        after = saved(config.run_folder)[".progress.update"]
        assert after == number - 1 if kind == "step" else before <= after < 40, (rank, kind, number)
    assert fine(run(Job(again), 2, tmp_path), 2)
    assert_equal(saved(whole.run_folder), saved(config.run_folder))
