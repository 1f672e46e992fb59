from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

import vision_ssm
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.models.registry import list_whole_models
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.recipes import find_recipe, list_recipes, parse_value, read_recipe
from vision_ssm.training.schedule import LearningRate, scaled_rate

FAMILIES = ("vim_", "vmamba_", "efficientvmamba_", "vig_", "dig_")
PUBLISHED = sorted(name for name in list_recipes() if name.startswith(FAMILIES))


def test_the_papers_recipes_are_there() -> None:
    vim = ["vim_base_imagenet", "vim_small_imagenet", "vim_tiny_imagenet"]
    vmamba = ["vmamba_base_imagenet", "vmamba_small_imagenet", "vmamba_tiny_imagenet", "vmamba_v0_imagenet"]
    efficient = [f"efficientvmamba_{size}_imagenet" for size in ("base", "small", "tiny")]
    vig = [f"vig{kind}_{size}_imagenet" for kind in ("", "_h") for size in ("base", "small", "tiny")]
    finetuning = ["vim_small_stride8_finetune", "vim_tiny_stride8_finetune"]
    dense = [
        *(f"vim_{size}_ade20k" for size in ("small", "tiny")),
        *(f"vmamba_{s}_ade20k" for s in ("base", "small", "tiny")),
        *("vim_tiny_cascade_coco", "efficientvmamba_base_mask_rcnn_coco"),
        *("vmamba_tiny_mask_rcnn_coco", "vmamba_tiny_mask_rcnn_3x_coco"),
    ]
    assert sorted([*vim, *finetuning, *vmamba, *efficient, *vig, *dense, "dig_s2_imagenet"]) == PUBLISHED


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_loads_and_its_model_exists(name: str) -> None:
    config = TrainConfig.load(name)
    assert config.model.name in {*timm.list_models(), *list_whole_models()}
    with torch.device("meta"):
        vision_ssm.create_model(config.model.name, img_size=config.model.img_size, **config.model.options)


def test_fine_tuning_needs_weights_to_start_from(tmp_path: Path) -> None:
    config = TrainConfig.load("finetune", {"data.path": "digits", "run.output": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"give --pretrained .* or --checkpoint FILE .* by --recipe small;"):
        train(config)
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        train(config.replace(**{"model.checkpoint": "none.pth"}))
    with pytest.raises(DataError, match="'nowhere'"):
        train(config.replace(**{"model.start_required": False, "data.path": "nowhere"}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_number_has_its_source(name: str) -> None:
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        value, _, comment = line.partition("#")
        if re.search(r"\w+: *(\d|\[|true|false)", value):
            tags = "script|default|config|log|paper|mmseg|mmdet|d2|train|diffusion|inferred"
            source = re.search(rf"\[({tags})\]", comment)
            assert source or "epoch_lag" in value, line


@pytest.mark.parametrize(
    ("name", "processes", "rate"),
    [
        ("vim_tiny_imagenet", 8, 1e-3),
        ("vim_small_imagenet", 8, 1e-3),
        ("vim_base_imagenet", 8, 1e-3),
        ("vim_tiny_stride8_finetune", 8, 1e-5),
        ("vim_small_stride8_finetune", 8, 1e-5),
        ("vim_tiny_imagenet", 1, 1.25e-4),
        ("vmamba_tiny_imagenet", 8, 1e-3),
        ("vmamba_v0_imagenet", 8, 1e-3),
        ("vig_tiny_imagenet", 8, 2e-3),
        ("vig_base_imagenet", 16, 2e-3),
        ("vig_h_small_imagenet", 8, 1e-3),
    ],
)
def test_learning_rate_used(name: str, processes: int, rate: float) -> None:
    assert scaled_rate(TrainConfig.load(name), processes) == pytest.approx(rate)
    more = TrainConfig.load(name, {"optim.accumulate": 4})
    assert scaled_rate(more, processes) == pytest.approx(4 * rate)


def optimizer(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def test_published_schedule_is_that_of_the_official_loop() -> None:
    config = TrainConfig.load("vim_tiny_imagenet")
    official = optimizer(1e-3)
    scheduler = CosineLRScheduler(official, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    ours = optimizer(1e-3)
    rate = LearningRate(ours, config, updates_per_epoch=1251)
    for epoch in range(300):
        assert rate.set(epoch, epoch * 1251 + 600) == official.param_groups[0]["lr"], epoch
        scheduler.step(epoch)  # as there: the argument is the epoch that has just ended
    assert rate.set(0, 0) == rate.set(1, 1251) == 1e-6


def test_a_cosine_that_follows_the_warm_up_is_that_of_vmamba_s_loop() -> None:
    config = TrainConfig.load("vmamba_tiny_imagenet")
    steps, warm = 300 * 10, 20 * 10
    official, ours = optimizer(1e-3), optimizer(1e-3)
    scheduler = CosineLRScheduler(
        official, t_initial=steps - warm, lr_min=1e-5, warmup_t=warm, warmup_lr_init=1e-6, t_in_epochs=False,
        warmup_prefix=True,
    )  # fmt: skip
    rate = LearningRate(ours, config, updates_per_epoch=10)
    for update in range(0, steps + 20, 7):
        scheduler.step_update(update)
        assert rate.set(update // 10, update) == pytest.approx(official.param_groups[0]["lr"], rel=1e-12), update
    assert rate.set(20, warm) == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="leaves the cosine no epoch"):
        TrainConfig.load("vmamba_tiny_imagenet", {"schedule.epochs": 20})


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_efficientvmamba_s_rate_is_the_log_s_whatever_the_batch(size: str) -> None:
    config = TrainConfig.load(f"efficientvmamba_{size}_imagenet", {"data.batch_size": 32})
    rate = LearningRate(optimizer(scaled_rate(config, 16)), config, updates_per_epoch=10)
    assert rate.set(0, 0) == pytest.approx(1e-7)
    assert rate.set(20, 200) == pytest.approx(2e-3)
    assert rate.set(160, 1600) == pytest.approx((2e-3 + 1e-6) / 2)
    assert rate.set(300, 3000) == pytest.approx(1e-6)


def test_rate_per_update_does_not_depend_on_what_was_set_before() -> None:
    config = TrainConfig.load(
        None, {"schedule.epochs": 4, "schedule.warmup_epochs": 0.5, "schedule.min_lr": 1e-5, "schedule.warmup_lr": 1e-6}
    )
    rate = LearningRate(optimizer(1e-3), config, updates_per_epoch=10)
    forwards = [rate.set(update // 10, update) for update in range(50)]
    backwards = [rate.set(update // 10, update) for update in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards[0] == 1e-6
    assert forwards[5] == max(forwards) == pytest.approx(1e-3, rel=0.05)
    assert forwards[39] < 2e-5
    assert set(forwards[40:]) == {1e-5}  # the cool-down


def test_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe is called 'digit'\. Did you mean 'digits'\?"):
        find_recipe("digit")
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe file"):
        find_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 5000,
        "a: 2020-13-45",
        "a: " + "9" * 5000,
        "a: !!binary x",
        "? {a: b}\n: c",
        "a: !!python/name:os.x",
    ],
)
def test_what_yaml_cannot_hold(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml: not valid YAML"):
        read_recipe(path)
    with pytest.raises(ConfigError, match=r"model\.options\.x: .* is not a YAML value"):
        parse_value(text, "model.options.x")


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="is a named pipe, not a recipe"):
        read_recipe(tmp_path / "x.yaml")
