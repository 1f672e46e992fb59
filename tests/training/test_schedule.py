"""The learning rate in closed form, and lengths in epochs and in updates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.scheduler.poly_lr import PolyLRScheduler

from vision_ssm.errors import ConfigError
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.schedule import LearningRate, Length


def rates(updates_per_epoch: int = 10, top: float = 1.0, **schedule: Any) -> LearningRate:
    config = TrainConfig.load(None, {f"schedule.{key}": value for key, value in schedule.items()})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=top)
    return LearningRate(optimizer, config, updates_per_epoch)


def at(rate: LearningRate, update: int, updates_per_epoch: int = 10) -> float:
    return rate.set(update // updates_per_epoch, update)


def test_cosine() -> None:
    rate = rates(name="cosine", epochs=8, warmup_epochs=2, warmup_lr=0.1, min_lr=0.2)
    assert [at(rate, 0), at(rate, 10)] == pytest.approx([0.1, 0.55])
    assert at(rate, 20) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))  # it ran on beneath the warm-up
    assert at(rate, 40) == pytest.approx(0.6)
    assert at(rate, 79) > at(rate, 80) == at(rate, 95) == 0.2


@pytest.mark.parametrize("prefix", [False, True])
def test_poly(prefix: bool) -> None:
    rate = rates(
        name="poly", updates=160, warmup_updates=40, warmup_lr=0.25, warmup_prefix=prefix, min_lr=0.04, power=0.9
    )
    assert [at(rate, 0), at(rate, 20)] == pytest.approx([0.25, 0.625])
    assert at(rate, 40) == pytest.approx(1.0 if prefix else 0.04 + 0.96 * 0.75**0.9)
    assert at(rate, 100) == pytest.approx(0.04 + 0.96 * (0.5 if prefix else 0.375) ** 0.9)
    assert at(rate, 159) > at(rate, 160) == at(rate, 999) == 0.04


def test_poly_of_power_one_is_a_straight_line_to_zero_and_that_of_timm() -> None:
    rate = rates(name="poly", updates=100)
    assert [at(rate, update) for update in (0, 25, 99, 100)] == pytest.approx([1.0, 0.75, 0.01, 0.0])
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = PolyLRScheduler(other, t_initial=70, power=0.9, lr_min=1e-3, t_in_epochs=False)
    ours = rates(top=0.3, name="poly", updates=70, power=0.9, min_lr=1e-3)
    for update in range(80):
        theirs.step_update(update)
        assert at(ours, update) == other.param_groups[0]["lr"], update


def test_step_drops_at_epochs_or_at_updates() -> None:
    by_epoch = rates(name="step", epochs=12, drops=[8, 11], drop_factor=0.5, warmup_updates=4)
    assert [at(by_epoch, update) for update in (0, 2, 4, 79, 80, 109, 110, 119)] == [0, 0.5, 1, 1, 0.5, 0.5, 0.25, 0.25]
    by_update = rates(name="step", updates=60, drops=[33, 50], warmup_epochs=0.5)
    expected = [0.0, 0.8, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert [at(by_update, update) for update in (0, 4, 5, 32, 33, 49, 50, 70)] == pytest.approx(expected)
    once_an_epoch = rates(name="step", epochs=4, drops=[2], per="epoch")
    assert [once_an_epoch.set(epoch, 0) for epoch in range(4)] == pytest.approx([1, 1, 0.1, 0.1])


def test_constant() -> None:
    rate = rates(name="constant", epochs=2, warmup_epochs=2, warmup_prefix=True)
    assert [at(rate, update) for update in (0, 5, 20, 1000)] == [0.0, 0.25, 1.0, 1.0]


def test_every_group_has_its_own_scale() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": scale} for scale in (0.5, 1.0)]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    config = TrainConfig.load(None, {"schedule.name": "poly", "schedule.updates": 4})
    assert LearningRate(optimizer, config, 2).set(1, 2) == 0.1
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


@pytest.mark.parametrize(
    ("schedule", "epochs", "updates", "in_epochs"),
    [
        ({"epochs": 2, "cooldown_epochs": 1}, 3, 30, [10, 10, 10]),
        ({"updates": 24}, 3, 24, [10, 10, 4]),
        ({"updates": 20}, 2, 20, [10, 10]),
        ({"updates": 3}, 1, 3, [3]),
        ({"updates": 24, "cooldown_epochs": 2}, 5, 44, [10, 10, 4, 10, 10]),
    ],
)
def test_length(schedule: dict[str, Any], epochs: int, updates: int, in_epochs: list[int]) -> None:
    config = TrainConfig.load(None, {f"schedule.{key}": value for key, value in schedule.items()})
    length = Length.of(config, 10)
    assert (length.epochs, length.updates) == (epochs, updates)
    assert [length.updates_in(epoch) for epoch in range(epochs)] == in_epochs


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"epochs": 3, "updates": 30}, r"both say how long the run is; give one of them, and null for the other"),
        ({"epochs": None}, r"schedule\.epochs or schedule\.updates must say how long the run is"),
        ({"warmup_epochs": 1, "warmup_updates": 5}, r"both say how long the warm-up is"),
        ({"updates": 5, "warmup_updates": 6}, r"schedule\.warmup_updates \(6\) is longer than schedule\.updates \(5\)"),
        ({"updates": 5, "warmup_updates": 5, "warmup_prefix": True, "name": "poly"}, r"leaves the poly no update"),
        ({"updates": 5, "per": "epoch"}, r"give its lengths in epochs"),
        ({"drops": [3]}, r"schedule\.drops are for the step schedule, and schedule\.name is cosine"),
        ({"name": "step"}, r"the step schedule needs schedule\.drops, the epochs after which"),
        (
            {"name": "step", "drops": [20, 10]},
            r"must rise and end before schedule\.epochs \(30\), got \[20\.0, 10\.0\]",
        ),
        ({"name": "step", "drops": [10, 30]}, r"must rise and end before schedule\.epochs \(30\)"),
        ({"name": "step", "drops": [0, 3]}, r"schedule\.drops must be above 0, got \[0, 3\]"),
        ({"name": "step", "drops": 3}, r"schedule\.drops must be a list of numbers, got 3"),
        ({"name": "polly"}, r"must be one of cosine, poly, step, constant, got 'polly'\. Did you mean 'poly'"),
    ],
)
def test_schedules_that_make_no_sense(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.load(None, {f"schedule.{key}": value for key, value in schedule.items()})


def test_a_warm_up_in_the_other_unit_must_fit_too() -> None:
    with pytest.raises(ConfigError, match=r"warm-up of 20 updates leaves nothing of the schedule's 15"):
        rates(name="cosine", updates=15, warmup_epochs=2)
    with pytest.raises(ConfigError, match=r"warm-up of 21 updates leaves nothing of the schedule's 20"):
        rates(name="cosine", epochs=2, warmup_updates=21)


def test_an_override_replaces_the_other_unit_of_the_recipe() -> None:
    config = TrainConfig.load("digits", {"schedule.updates": 100, "schedule.warmup_updates": 7})
    assert (config.schedule.epochs, config.schedule.updates) == (None, 100)
    assert (config.schedule.warmup_epochs, config.schedule.warmup_updates) == (0.0, 7)
    back = config.replace(**{"schedule.epochs": 3})
    assert (back.schedule.epochs, back.schedule.updates, back.schedule.warmup_updates) == (3, None, 7)
    assert TrainConfig.from_dict(config.to_dict()) == config
