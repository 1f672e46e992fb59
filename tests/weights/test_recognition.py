"""Weights of another model than the one named: the message says whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vision_ssm.checkpoints import vim
from vision_ssm.errors import CheckpointError
from vision_ssm.models.registry import create_model
from vision_ssm.training.starting import load_start
from vision_ssm.weights.opening import open_model


def test_a_published_file_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "vim.pth"
    torch.save({"model": vim.to_published(create_model("vim_nano", num_classes=5).state_dict())}, path)
    told = r"It holds the weights of vim_nano: --model vim_nano\. What differs: these weights do not fit"
    with pytest.raises(CheckpointError, match=rf"cannot load '.*vim\.pth' into 'vmamba_nano'\. {told} VMamba"):
        open_model(path, model="vmamba_nano")
    with pytest.raises(CheckpointError, match=rf"vim\.pth\. {told} EfficientVMamba"):
        load_start(create_model("efficientvmamba_nano"), path)


def test_a_file_of_ours_of_another_model_and_of_other_options(weights: Path) -> None:
    told = "It holds a vim_nano with depth 1, embed_dim 16, img_size 8, which it says itself. What differs: "
    for model in ("vmamba_nano", "vim_nano"):
        with pytest.raises(CheckpointError, match=rf"into '{model}'\. {told}these weights do not fit V"):
            open_model(weights, model=model)


def test_the_right_model_with_another_number_of_classes_is_not_called_another_one(tmp_path: Path) -> None:
    torch.save(vim.to_published(create_model("vim_nano", num_classes=5).state_dict()), tmp_path / "vim.pth")
    with pytest.raises(CheckpointError, match=r"into 'vim_nano': these weights do not fit Vim: .*head"):
        open_model(tmp_path / "vim.pth", model="vim_nano", model_options={"num_classes": 4})


def test_a_file_of_nothing_known(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"into 'vim_nano': these weights do not fit Vim"):
        open_model(tmp_path / "a.pth", model="vim_nano")
