"""Tasks know nothing of how a model is spread: whole on two processes and in shards they learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.detection.boards import coco
from tests.tasks.detection.boards import scenes as boards
from tests.tasks.segmentation import scenes
from tests.training.processes import Job, first, run, saved
from vision_ssm.layers.detection import matching
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.run import train

BACKBONE = {"patch_size": 8, "embed_dim": 16, "depth": 4}


def of_segmentation(root: Path, images: int = 9) -> dict[str, Any]:
    names = [f"{part}/{number}" for part, count in (("train", images), ("val", 5)) for number in range(count)]
    return {
        "data.path": str(scenes.folder(root / "scenes", names)), "model.name": "vim_nano",
        "model.options": {**BACKBONE, "patch_size": 4}, "model.img_size": 32, "head.channels": 8,
        "head.auxiliary_channels": 4,
    }  # fmt: skip


def of_detection(root: Path, images: int = 9) -> dict[str, Any]:
    """One image of each part has no object, so that heads of one process see none while the other's do."""
    parts = {"train": boards(images, seed=1), "val": boards(5, seed=2)}
    return {
        "data.path": str(coco(root / "boards", parts, outlines="packed", ids=(3, 7), size=(64, 72))),
        "model.name": "vim_nano", "model.options": BACKBONE, "model.img_size": 64, "head.channels": 16,
        "head.fc_channels": 32, "head.anchor_scale": 3.0, "head.proposals": 50, "head.mask_convs": 1,
        "head.box_fcs": 1,
    }  # fmt: skip


def of_generation(root: Path) -> dict[str, Any]:
    return {
        "data.path": "digits",
        "model.name": "dig_nano",
        "schedule.epochs": None,
        "schedule.updates": 3,
        "data.eval_batch_size": 128,
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "detection", "generation"])
def test_shards_learn_what_whole_models_learn(tmp_path: Path, task: str) -> None:
    """By SGD: Adam's quotient is of rounding where a gradient is next to nothing, as of biases before a batch norm.
    Gradients are of 0.5 in all, so 1e-5 of one is rounding.

    Validation has fewer images on one of the processes.
    """
    values = {
        "task": task, "data.batch_size": 1, "data.workers": 0, "schedule.epochs": 1, "optim.name": "sgd",
        "optim.lr": 0.01, "optim.accumulate": 2, "optim.clip_grad": 0.5, "ema.decay": 0.5, "run.device": "cpu",
        "run.output": str(tmp_path / "runs"), **globals()[f"of_{task}"](tmp_path),
    }  # fmt: skip
    found = []
    for way in ("ddp", "fsdp"):
        config = TrainConfig.load(None, {**values, "run.name": way, "run.parallel": way})
        ends = run(Job(config), 2, tmp_path)
        assert [error for error, _ in ends.values()] == [None, None]
        found.append(saved(config.run_folder))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            largest = float(value.abs().max())
            assert float((value - found[1][name]).abs().max()) <= 1e-4 * largest + 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize(("way", "world"), [("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4)])
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_processes_learn_what_one_learns_of_their_shares_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, way: str, world: int
) -> None:
    """20 updates by SGD, each second one of a single batch, which does not fill it. The images share evenly: what does
    not fill a batch of all is left out by them and used by one.

    Heads norm over a batch, and losses count its boxes: those of a process, not of all. So one process is compared that
    accumulates over the same shares; the running statistics, which it moves twice as often, are left out. Which boxes
    are drawn is made certain, for every process draws its own.
    """
    values = {
        "task": task, "data.batch_size": 1, "data.workers": 0, "schedule.epochs": 10, "optim.name": "sgd",
        "optim.lr": 0.01, "optim.clip_grad": 0.5, "ema.decay": 0.5, "run.device": "cpu",
        "run.output": str(tmp_path / "runs"), **globals()[f"of_{task}"](tmp_path, images=3 * world),
    }  # fmt: skip
    if task == "segmentation":
        values["head.drop_rate"] = 0.0
    monkeypatch.setattr(matching, "_drawn", first)
    alone = TrainConfig.load(None, {**values, "run.name": "alone", "optim.accumulate": 2 * world})
    train(alone)
    several = TrainConfig.load(None, {**values, "run.name": way, "run.parallel": way, "optim.accumulate": 2})
    ends = run(Job(several, kind="first boxes"), world, tmp_path)
    assert [error for error, _ in ends.values()] == [None] * world
    expected, found = saved(alone.run_folder), saved(several.run_folder)
    assert found[".progress.update"] == expected[".progress.update"] == 20
    compared = 0
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and ".running_" not in name:
            rounding = 1e-4 if name.startswith(".optimizer") else 1e-5  # momentum adds ten gradients up
            largest = float(value.abs().max())
            assert float((value - found[name]).abs().max()) <= 1e-4 * largest + rounding, name
            compared += 1
    assert compared > 50
