"""Starting from published weights whose names for the classifier are not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vision_ssm.checkpoints import vmamba
from vision_ssm.errors import CheckpointError
from vision_ssm.models import create_model
from vision_ssm.training.starting import load_start

TINY = {"embed_dim": 16, "depths": (1, 1, 1, 1)}


@pytest.fixture
def released(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    source = create_model("vmamba_nano", num_classes=5, **TINY)
    path = tmp_path / "released.pth"
    torch.save({"model": vmamba.to_published(source.state_dict())}, path)
    return source, path


def test_the_classifier_of_as_many_classes_is_kept(released: tuple[torch.nn.Module, Path]) -> None:
    source, path = released
    model = create_model("vmamba_nano", num_classes=5, **TINY)
    assert load_start(model, path) == []
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_another_number_of_classes_is_told_and_starts_anew(released: tuple[torch.nn.Module, Path]) -> None:
    source, path = released
    model = create_model("vmamba_nano", num_classes=3, **TINY)
    head = model.get_classifier().weight.clone()
    (told,) = load_start(model, path)
    assert told.endswith("its head with 5 outputs does not fit here; a new one starts from random weights.")
    assert torch.equal(model.get_classifier().weight, head)
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_anything_else_that_differs_is_refused(released: tuple[torch.nn.Module, Path]) -> None:
    _, path = released
    with pytest.raises(CheckpointError, match=r"released\.pth: .*missing: layers\.1\.blocks\.1\."):
        load_start(create_model("vmamba_nano", num_classes=3, embed_dim=16, depths=(1, 2, 1, 1)), path)


def test_the_folder_of_a_run_stands_for_its_best_weights(tmp_path: Path) -> None:
    source = create_model("vmamba_nano", num_classes=5, **TINY)
    save_file(source.state_dict(), tmp_path / "best.safetensors")
    model = create_model("vmamba_nano", num_classes=5, **TINY)
    assert load_start(model, tmp_path) == []
    assert torch.equal(model.norm.weight, source.norm.weight)
