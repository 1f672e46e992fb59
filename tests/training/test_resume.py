"""Kill -9 at any moment, resume, and end with the same bits. The processes and the signals are real."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vision_ssm.training.config import TrainConfig
from vision_ssm.training.state import read_state
from vision_ssm.weights.files import read_info


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(values: dict[str, Any], moment: tuple[str, int] | None) -> None:
    """Train in this process and die at ``moment``."""
    from vision_ssm.training import run
    from vision_ssm.training import state as checkpoint

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers; quicker than another fork server
    run.results.write_pictures = lambda *_: None  # not what this is about, and slow to import
    kind, at = moment or ("never", 0)
    seen = 0

    def listen(event: Any) -> None:
        nonlocal seen
        if type(event).__name__ == kind:
            seen += 1
            if seen == at:
                _die()

    written = 0

    def half_a_file(state: Any, path: Path) -> None:
        nonlocal written
        written += 1
        serialise(state, path)
        if written == at:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            _die()

    def die_before(source: Any, target: Any) -> None:
        nonlocal written
        written += Path(target).name == checkpoint.LAST
        if written == at and Path(target).name == checkpoint.LAST:
            _die()
        replace(source, target)

    serialise, replace = checkpoint._serialise, os.replace
    if kind == "half a checkpoint":
        checkpoint._serialise = half_a_file
    if kind == "between two renames":
        os.replace = die_before
    run.train(TrainConfig.from_dict(values), on_event=listen)


def in_a_process(config: TrainConfig, moment: tuple[str, int] | None = None) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vision_ssm.training.run", "vision_ssm.models.vim"])
    process = context.Process(target=child, args=(config.to_dict(), moment))
    process.start()
    process.join(timeout=120)
    return process.exitcode


def steps(folder: Path) -> list[tuple[Any, ...]]:
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        tuple(event.get(key) for key in ("event", "epoch", "update", "loss", "grad_norm", "learning_rate", "scores"))
        for event in events
        if event["event"] in ("step_done", "epoch_done")
    ]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: item for part, inner in items for key, item in flat(inner, f"{name}.{part}").items()}
    return {name: value}


def assert_same_run(one: Path, other: Path) -> None:
    states = [flat(read_state(folder)[0]) for folder in (one, other)]
    for name, value in states[0].items():
        if name.startswith((".config.run", ".config.data.workers", ".log_bytes")) or name.endswith("seconds"):
            continue
        same = torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
        assert same, name
    assert len(states[0]) == len(states[1])
    for file in ("best.safetensors", "last.safetensors"):
        tensors = [load_file(folder / file) for folder in (one, other)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
        assert read_info(one / file) == read_info(other / file)
    assert steps(one) == steps(other)


@pytest.fixture
def runs(tiny: Callable[..., TrainConfig], everything_on: dict[str, Any]) -> Callable[..., TrainConfig]:
    def make(name: str, **overrides: Any) -> TrainConfig:
        return tiny(**{**everything_on, "run.name": name, "run.checkpoint_minutes": 0.0, **overrides})

    return make


def test_killed_again_and_again(runs: Callable[..., TrainConfig]) -> None:
    whole, broken = runs("whole"), runs("broken")
    assert in_a_process(whole) == 0
    again = broken.replace(**{"run.resume": str(broken.run_folder)})
    moments = [
        ("StepDone", 1),  # before the first checkpoint of all
        ("StepDone", 2),  # mid-epoch, after an update that no checkpoint has
        ("half a checkpoint", 1),
        ("EvaluationStep", 1),
        ("EpochDone", 1),  # between the weights files and the checkpoint
        ("between two renames", 2),
        ("StepDone", 1),
        None,
    ]
    codes = [in_a_process(again if number else broken, moment) for number, moment in enumerate(moments)]
    assert codes == [-signal.SIGKILL] * 7 + [0]
    assert_same_run(whole.run_folder, broken.run_folder)


def test_checkpoints_at_the_ends_of_epochs_and_loader_processes(runs: Callable[..., TrainConfig]) -> None:
    sparse = {"run.checkpoint_minutes": 1e6, "data.workers": 1}
    whole, broken = runs("whole"), runs("broken", **sparse)
    assert in_a_process(whole) == 0
    assert in_a_process(broken, ("StepDone", 5)) == -signal.SIGKILL
    assert in_a_process(broken.replace(**{"run.resume": str(broken.run_folder)})) == 0
    assert_same_run(whole.run_folder, broken.run_folder)


def test_killed_in_the_cut_last_epoch_and_resumed_for_a_longer_cool_down(runs: Callable[..., TrainConfig]) -> None:
    # Three updates make an epoch, so the fifth ends the schedule inside the second one.
    schedule = {"schedule.name": "poly", "schedule.epochs": None, "schedule.updates": 5, "schedule.warmup_updates": 1}
    whole, broken = (runs(name, **schedule) for name in ("whole", "broken"))
    assert in_a_process(whole) == 0
    assert in_a_process(broken, ("StepDone", 5)) == -signal.SIGKILL
    assert read_state(broken.run_folder)[0]["progress"]["step"] == 1  # of the two that the cut epoch has
    again = broken.replace(**{"run.resume": str(broken.run_folder)})
    assert in_a_process(again) == 0
    assert_same_run(whole.run_folder, broken.run_folder)
    kinds = [(event[0], event[1], event[2]) for event in steps(whole.run_folder)]
    assert kinds[-3:] == [("step_done", 2, 4), ("step_done", 2, 5), ("epoch_done", 2, 5)]
    assert steps(whole.run_folder)[-1][-1] is not None  # evaluated

    # In one go, and with a loader process that has read ahead of the cut.
    longer = runs("longer", **schedule, **{"schedule.cooldown_epochs": 1, "data.workers": 1})
    assert in_a_process(longer) == 0
    assert in_a_process(again.replace(**{"schedule.cooldown_epochs": 1})) == 0
    assert_same_run(longer.run_folder, broken.run_folder)
    assert read_state(broken.run_folder)[0]["progress"]["update"] == 8
