from __future__ import annotations

import errno
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.training import state as checkpoint
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.state import read_state, refuse_changes, write_state


def state(number: int) -> dict[str, Any]:
    config = TrainConfig().to_dict()
    return {
        "model": {"weight": torch.full((100, 100), float(number))},
        "ema": None,
        "optimizer": {},
        "scaler": {},
        "progress": {"update": number},
        "config": config,
        "data": {"training images": "a"},
        "processes": 1,
        "log_bytes": 0,
    }


def number_in(path: Path) -> int:
    return int(read_state(path)[0]["model"]["weight"][0, 0])


def test_last_and_previous(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_state(tmp_path, state(number))
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert number_in(tmp_path) == number_in(tmp_path / "last.ckpt") == 3
    assert number_in(tmp_path / "previous.ckpt") == 2


def test_full_disk(tmp_path: Path) -> None:
    for number in (1, 2):
        write_state(tmp_path, state(number))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a state takes 40 kB
    try:
        with pytest.raises(CheckpointError, match=r"could not write the checkpoint: .*large.*last good .*last\.ckpt"):
            write_state(tmp_path, state(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert (number_in(tmp_path), number_in(tmp_path / "previous.ckpt")) == (2, 1)


def test_a_run_survives_a_full_disk(
    tiny: Callable[..., TrainConfig], everything_on: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (
        tiny(**{**everything_on, "run.name": name, "run.checkpoint_minutes": 0.0}) for name in ("whole", "broken")
    )
    train(whole)
    save, written = torch.save, 0

    def no_space(content: Any, file: Any) -> None:
        nonlocal written
        written += 1
        if written == 3:
            file.write(b"PK half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", no_space)
        with pytest.raises(CheckpointError, match=r"No space left on device.*last good checkpoint is .*last\.ckpt"):
            train(broken)
    assert read_state(broken.run_folder)[0]["progress"]["update"] == 2
    train(broken.replace(**{"run.resume": str(broken.run_folder)}))
    ends = [read_state(config.run_folder)[0]["model"] for config in (whole, broken)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_a_damaged_last_one_is_passed_over(tmp_path: Path) -> None:
    for number in (1, 2):
        write_state(tmp_path, state(number))
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    found, file = read_state(tmp_path)
    assert (found["progress"]["update"], file.name) == (1, "previous.ckpt")
    last.unlink()  # killed between the two renames
    assert number_in(tmp_path) == 1


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile-code-ran",)


def test_files_that_are_no_training_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint \(last\.ckpt\) here"):
        read_state(tmp_path)
    file = tmp_path / "x.ckpt"
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_state(file)
    contents = {"empty": b"", "text": b"hello world", "hostile": pickle.dumps({"model": Hostile()})}
    for content in contents.values():
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged, or not a training checkpoint"):
            read_state(file)
    torch.save({"model": Hostile()}, file)
    with pytest.raises(CheckpointError, match="damaged, or not a training checkpoint"):
        read_state(file)
    assert not (tmp_path / "hostile-code-ran").exists()
    torch.save({"model": {"weight": torch.zeros(3)}}, file)
    with pytest.raises(CheckpointError, match=r"not a training checkpoint of this library.*model\.checkpoint"):
        read_state(file)
    torch.save({**state(1), "format": checkpoint.FORMAT + 1}, file)
    with pytest.raises(CheckpointError, match="written by a newer version"):
        read_state(file)


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        ({"run.device": "cuda", "data.workers": 7, "run.checkpoint_minutes": 1.0, "run.output": "elsewhere"}, True),
        ({"model.grad_checkpointing": True, "schedule.cooldown_epochs": 4}, True),
        ({"schedule.epochs": 31}, False),
        ({"run.seed": 1}, False),
        ({"run.amp": "bf16"}, False),
        ({"model.options": {"class_token": "head"}}, False),
        ({"data.val_fraction": 0.3}, False),
    ],
)
def test_what_may_change(overrides: dict[str, Any], allowed: bool) -> None:
    config = TrainConfig().replace(**overrides)
    if allowed:
        refuse_changes(state(1), config, {"training images": "a"}, 1)
        return
    with pytest.raises(ConfigError, match=f"{next(iter(overrides))} was "):
        refuse_changes(state(1), config, {"training images": "a"}, 1)


@pytest.mark.parametrize(
    ("schedule", "change", "refused"),
    [
        ({"name": "constant"}, {"epochs": 40}, None),
        ({"name": "step", "drops": [8]}, {"epochs": 40}, None),
        ({"name": "step", "drops": [8]}, {"drops": [9]}, r"schedule\.drops was \[8\.0\] and is \[9\.0\]"),
        ({"name": "poly"}, {"epochs": 40}, r"schedule\.epochs was 30 and is 40"),
        ({"name": "poly", "updates": 90}, {"cooldown_epochs": 1}, None),
        ({"name": "constant", "updates": 90}, {"updates": 100}, r"schedule\.updates was 90 and is 100"),
        (
            {"name": "constant"},
            {"updates": 100},
            r"schedule\.epochs was 30 and is None; schedule\.updates was None and is 1",
        ),
        ({"name": "cosine"}, {"warmup_updates": 3}, r"schedule\.warmup_updates was 0 and is 3"),
    ],
)
def test_what_may_change_of_a_schedule(schedule: dict[str, Any], change: dict[str, Any], refused: str | None) -> None:
    before = TrainConfig.load(None, {f"schedule.{key}": value for key, value in schedule.items()})
    after = before.replace(**{f"schedule.{key}": value for key, value in change.items()})
    saved = {**state(1), "config": before.to_dict()}
    if refused is None:
        refuse_changes(saved, after, {"training images": "a"}, 1)
        return
    with pytest.raises(ConfigError, match=refused):
        refuse_changes(saved, after, {"training images": "a"}, 1)


def test_a_checkpoint_from_before_there_were_lengths_in_updates() -> None:
    saved = state(1)
    for key in ("updates", "warmup_updates", "power", "drops", "drop_factor"):
        del saved["config"]["schedule"][key]
    refuse_changes(saved, TrainConfig(), {"training images": "a"}, 1)
    with pytest.raises(ConfigError, match=r"schedule\.power was 1\.0 and is 2\.0"):
        refuse_changes(saved, TrainConfig().replace(**{"schedule.power": 2.0}), {"training images": "a"}, 1)


def test_other_data_and_other_process_counts_are_another_run() -> None:
    with pytest.raises(ConfigError, match="the training images differ; it ran on 1 processes and would continue on 2"):
        refuse_changes(state(1), TrainConfig(), {"training images": "b"}, 2)
