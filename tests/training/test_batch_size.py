"""A batch size found by memory."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch

from vision_ssm.errors import ConfigError
from vision_ssm.training import batch_size, train
from vision_ssm.training.batch_size import free_memory, largest_that_fits
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import Event, Notice, StepDone

Tiny = Callable[..., TrainConfig]

LINE = [(2, 120), (4, 140), (8, 180)]  # 100 and 10 for each image


def test_the_largest_power_of_two_that_fits() -> None:
    assert largest_that_fits(LINE, 2, 256, 430) == (32, 420)
    assert largest_that_fits(LINE, 2, 256, 419) == (16, 260)
    assert largest_that_fits(LINE, 2, 16, 10_000) == (16, 260)
    assert largest_that_fits(LINE, 2, 256, 120) == (2, 120)
    assert largest_that_fits(LINE, 2, 256, 119) == (None, 120)
    assert largest_that_fits([(2, 120)], 2, 2, 130) == (2, 120)
    out_of_memory = [(2, 120), (4, 140), (8, 2000)]
    assert largest_that_fits(out_of_memory, 2, 256, 1000) == (4, 140)


def test_memory_that_is_free_is_less_than_the_machine_has() -> None:
    total = torch.tensor(int(open("/proc/meminfo").readline().split()[1]) * 1024)  # noqa: SIM115
    assert 0 < free_memory(torch.device("cpu")) < total


def test_a_run_keeps_the_size_that_was_found(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def trial(config: TrainConfig, most: int, budget: int) -> list[tuple[int, int]]:
        asked.append(most)
        return [(2, budget // 4), (4, budget // 2)]

    monkeypatch.setattr(batch_size, "_trial", trial)
    config = tiny(**{"data.batch_size": "auto"})
    seen: list[Event] = []

    def stop(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepDone) and event.update == 2:
            signal.raise_signal(signal.SIGTERM)

    assert train(config, on_event=stop).interrupted
    assert asked == [5], "of 40 images, so that an epoch has 8 updates"
    told = next(event.message for event in seen if isinstance(event, Notice))
    assert told.startswith("data.batch_size is 4: it takes about ")
    assert told.endswith("and an epoch keeps 8 updates or more.")
    assert TrainConfig.load(config.run_folder / "config.yaml").data.batch_size == 4
    monkeypatch.setattr(batch_size, "_trial", lambda *_: pytest.fail("the number is known"))
    assert train(config.replace(**{"run.resume": str(config.run_folder)})).updates == 20


def test_not_even_the_smallest_batch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "_trial", lambda config, most, budget: [(2, budget + 1)])
    with pytest.raises(ConfigError, match=r"a step of 2 images takes .* GiB are free on cpu"):
        train(tiny(**{"data.batch_size": "auto"}))


def test_real_steps_in_a_process_apart(tiny: Tiny) -> None:
    steps = batch_size._trial(tiny(**{"data.batch_size": "auto", "augment.mixup": 0.5}), 4, 2**40)
    assert [images for images, _ in steps] == [2, 4]
    assert all(2**26 < used < 2**33 for _, used in steps)
    with pytest.raises(ConfigError, match=r"the trial step failed \(.*no folder and no data set"):
        batch_size._trial(tiny(**{"data.batch_size": "auto", "data.path": "nowhere"}), 4, 2**40)
