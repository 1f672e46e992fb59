"""Two real processes over gloo: the same run as one process with the whole batch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.state import read_state

# No randomness but the order: two processes draw other mixing ratios and drop paths than one.
PLAIN = {
    "augment.crop": "none",
    "augment.hflip": 0.0,
    "optim.accumulate": 2,
    "optim.clip_grad": 0.5,
    "optim.lr": 1e-3,
    "ema.decay": 0.5,
}


def child(rank: int, meeting: str, values: dict[str, Any], output: Any) -> None:
    import torch.distributed as dist

    from vision_ssm.training import run
    from vision_ssm.training.events import Event

    torch.set_num_threads(1)
    run.results.write_pictures = lambda *_: None
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    events: list[Event] = []
    engines: list[Any] = []
    carry_out = run._Run.carry_out
    run._Run.carry_out = lambda self, source: (engines.append(self.engine), carry_out(self, source))[1]
    run.train(TrainConfig.from_dict(values), on_event=events.append)
    weights = {name: tensor.numpy() for name, tensor in engines[0].model.state_dict().items()}
    output.put((rank, weights, len(events)))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_run(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    alone = tiny(**PLAIN, **{"data.batch_size": 10, "run.name": "alone"})
    train(alone)
    both = tiny(**PLAIN, **{"data.batch_size": 5, "run.name": "both"})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vision_ssm.training.run", "vision_ssm.models.vim"])
    output = context.Queue()
    arguments = (str(tmp_path / "meeting"), both.to_dict(), output)
    processes = [context.Process(target=child, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {rank: (weights, events) for rank, weights, events in (output.get(timeout=120) for _ in processes)}
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert found[0][1] > 0 == found[1][1]  # events come from the main process only
    one, two = (read_state(config.run_folder)[0] for config in (alone, both))
    for name, tensor in one["model"].items():
        assert (found[0][0][name] == found[1][0][name]).all(), name
        torch.testing.assert_close(tensor, two["model"][name], rtol=1e-3, atol=1e-5, msg=name)
    for key in ("best_epoch", "update"):
        assert one["progress"][key] == two["progress"][key]
    assert two["progress"]["best_scores"] == pytest.approx(one["progress"]["best_scores"], rel=1e-3)
