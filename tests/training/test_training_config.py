from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vision_ssm.errors import ConfigError
from vision_ssm.settings import describe
from vision_ssm.tasks.classification.settings import ClassificationSettings
from vision_ssm.training.config import TrainConfig, config_class


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.lrr": 1.0}, r"unknown setting 'optim\.lrr'\. Did you mean 'optim\.lr'\?"),
        ({"lr": 1.0}, r"unknown setting 'lr'\. Did you mean 'optim\.lr'\?"),
        ({"epoch": 3}, r"unknown setting 'epoch'\. Did you mean 'schedule\.epochs'\?"),
        ({"optm.lr": 1.0}, r"unknown setting 'optm'\. Did you mean 'optim'\?"),
        ({"run.zzz": 1}, r"unknown setting 'run\.zzz'\. The settings here are output, name"),
        ({"optim.lr": "fast"}, r"optim\.lr must be a number, got 'fast'"),
        ({"optim.lr": float("nan")}, r"optim\.lr must be a number, got nan"),
        ({"optim.lr": 0}, r"optim\.lr must be above 0, got 0"),
        ({"data.batch_size": 0}, r"data\.batch_size must be at least 1, got 0"),
        ({"data.batch_size": 1.5}, r"data\.batch_size must be a whole number or auto, got 1\.5"),
        ({"data.batch_size": True}, r"data\.batch_size must be a whole number or auto, got True"),
        ({"model.img_size": -4}, r"model\.img_size must be at least 1, got -4"),
        ({"model.img_size": [32, 0]}, r"model\.img_size must be at least 1"),
        ({"model.img_size": [1, 2, 3]}, r"a whole number or a list of 2 whole numbers or null, got \[1, 2, 3\]"),
        ({"model.name": 3}, r"model\.name must be text, got 3"),
        ({"model.pretrained": "yes"}, r"model\.pretrained must be true or false"),
        ({"model.options": 3}, r"model\.options must be a mapping of names to values, got 3"),
        ({"run.amp": "bf17"}, r"run\.amp must be one of none, bf16, fp16, got 'bf17'\. Did you mean 'bf16'\?"),
        ({"augment.label_smoothing": 1}, r"label_smoothing must be at least 0 and below 1"),
        ({"augment.scale": [1, 0.5]}, r"augment\.scale must be \[smallest, largest\]"),
        ({"augment.mixup": 0.2, "data.batch_size": 9}, r"data\.batch_size must be even, got 9"),
        ({"schedule.epochs": 3, "schedule.warmup_epochs": 5}, r"warmup_epochs \(5\) is longer than schedule\.epochs"),
        ({"model.pretrained": True, "model.checkpoint": "a.pth"}, r"both say where to start"),
        ({"run.resume": "runs/a", "run.overwrite": True}, r"give one of them"),
        ({"optim": 3}, r"optim is a section with the settings name, lr, "),
        ({"task.foo": 1}, r"'task' holds a value, not settings"),
    ],
)
def test_refusals(overrides: dict[str, Any], message: str) -> None:
    values = TrainConfig().to_dict()
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values).replace(**overrides)


def test_a_fault_in_a_recipe_is_told_with_its_file(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {lr: 1e-3, wieght_decay: 0.1}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown setting 'optim\.wieght_decay'.*'optim\.weight_decay'"):
        TrainConfig.load(recipe)
    recipe.write_text("optim: [1, 2")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not valid YAML"):
        TrainConfig.load(recipe)
    recipe.write_text("- optim")
    with pytest.raises(ConfigError, match=r"mine\.yaml: a recipe is a mapping of sections, got list"):
        TrainConfig.load(recipe)


def test_recipe_then_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    # Without a dot YAML 1.1 reads 1e-3 as text.
    recipe.write_text("optim: {lr: 1e-3, betas: [0.9, 0.95]}\nmodel: {options: {class_token: head}}\n")
    texts = ["schedule.epochs=7", "model.options.global_pool=token", "model.img_size=[64, 96]", "optim.clip_grad=null"]
    config = TrainConfig.load(recipe, texts)
    assert (config.optim.lr, config.optim.betas, config.schedule.epochs) == (1e-3, (0.9, 0.95), 7)
    assert config.model.options == {"class_token": "head", "global_pool": "token"}
    assert config.model.img_size == (64, 96)
    with pytest.raises(ConfigError, match=r"written section\.name=value, got 'epochs'"):
        TrainConfig.load(recipe, ["epochs"])


def test_what_a_run_writes_is_read_back(tmp_path: Path) -> None:
    config = TrainConfig().replace(
        **{"optim.betas": [0.9, 0.99], "model.options": {"depth": 3}, "augment.scale": [0.5, 1], "run.name": "ä: b"}
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.replace(**{"run.resume": "runs/x"}).to_yaml(), encoding="utf-8")
    assert TrainConfig.load(file) == config


def test_numbers_without_a_dot_and_texts_that_look_like_them(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("optim: {lr: 1e-3, eps: 1E-8}\nmodel: {options: {layer_scale: -1e-4}}\nrun: {name: '1e5'}\n")
    config = TrainConfig.load(file, ["ema.decay=9e-1"])
    assert (config.optim.lr, config.optim.eps, config.ema.decay) == (1e-3, 1e-8, 0.9)
    assert (config.model.options["layer_scale"], config.run.name) == (-1e-4, "1e5")
    file.write_text(config.to_yaml())
    assert TrainConfig.load(file) == config


def test_a_configuration_travels_to_another_process() -> None:
    config = TrainConfig.load("digits")
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_task_sees_its_own_part_and_the_general_class_is_that_of_the_task() -> None:
    config = TrainConfig.load("digits", {"augment.mixup": 0.3})
    assert config.settings == ClassificationSettings(data=config.data, augment=config.augment)
    assert type(TrainConfig(task="classification")) is type(config) is config_class("classification")
    for task, message in (
        (3, r"task must be the name of a task \(classification, segmentation, detection, generation\), got 3"),
        ("x", "no task is called"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainConfig.from_dict({"task": task})


def test_instances_share_no_options() -> None:
    first, second = TrainConfig(), TrainConfig()
    first.model.options["depth"] = 3
    assert second.model.options == {}


def test_every_setting_is_described() -> None:
    entries = describe(config_class("classification"))
    assert {"task", "model.name", "augment.mixup", "optim.lr", "run.checkpoint_minutes"} <= set(entries)
    assert all(entry.text.endswith(".") and entry.type for entry in entries.values())


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, vision_ssm.training as t, vision_ssm.training.config; t.TrainConfig.load('digits');"
        "sys.exit(bool({'torch', 'timm', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
