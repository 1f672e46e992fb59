"""Starting from published weights whose names for the classifier are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vision_ssm.checkpoints import vmamba
from vision_ssm.errors import CheckpointError
from vision_ssm.models import create_model
from vision_ssm.models.detectors import build_detector
from vision_ssm.models.segmentors import build_segmentor
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


@pytest.mark.parametrize("name", ["vim_nano", "vmamba_nano", "efficientvmamba_nano", "resnet18"])
@pytest.mark.parametrize("norms", [False, True])
def test_a_segmentors_backbone_starts_from_a_classifier(tmp_path: Path, name: str, norms: bool) -> None:
    if norms and name in ("vim_nano", "resnet18"):
        pytest.skip("has no norms of its maps")
    form = {"patch_size": 4} if "mamba" in name else {}
    source = create_model(name, num_classes=5, **form)
    save_file(source.state_dict(), tmp_path / "classifier.safetensors")
    heads = {"num_classes": 3, "channels": 4, "auxiliary_channels": 0}
    model = build_segmentor(name, heads, **form, **({"stage_norms": True} if norms else {}))
    own = {key: x.clone() for key, x in model.inner.state_dict().items()}
    (told,) = load_start(model, tmp_path / "classifier.safetensors", backbone=model.inner)
    assert told.endswith("only the backbone was taken from it; the rest starts from random weights.")
    given = source.state_dict()
    for key, x in model.inner.state_dict().items():
        assert torch.equal(x, own[key] if key.startswith("stage_norms.") else given[key]), key
    left = {key.partition(".")[0] for key in given.keys() - own.keys()}
    assert left <= {"norm", "head", "fc"}


def test_a_segmentors_backbone_starts_from_a_published_classifier(released: tuple[torch.nn.Module, Path]) -> None:
    source, path = released
    heads = {"num_classes": 3, "channels": 4, "auxiliary_channels": 0}
    with pytest.raises(CheckpointError, match="these weights do not fit VMamba"):
        model = build_segmentor("vmamba_nano", heads, patch_size=4, stage_norms=True)
        load_start(model, path, backbone=model.inner)
    model = build_segmentor("vmamba_nano", heads, patch_size=4, stage_norms=True, **TINY)
    weights = {key: x for key, x in source.state_dict().items() if not key.startswith(("patch_embed", "head"))}
    weights |= {key: x for key, x in model.inner.state_dict().items() if key.startswith("patch_embed")}
    torch.save({"model": vmamba.to_published({**source.state_dict(), **weights})}, path)
    load_start(model, path, backbone=model.inner)
    assert torch.equal(model.inner.stages[3].blocks[0].norm.weight, source.stages[3].blocks[0].norm.weight)


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vim_nano", {"patch_size": 4}),
        ("vmamba_nano", {"patch_size": 4, "stage_norms": True}),
        ("efficientvmamba_nano", {"patch_size": 4, "stage_norms": True}),
        ("resnet18", {}),
    ],
)
def test_a_segmentor_starts_whole_but_for_other_classes(
    tmp_path: Path, name: str, options: dict[str, Any], classes: int
) -> None:
    form = {"channels": 4, "auxiliary_channels": 4}
    source = build_segmentor(name, {"num_classes": 3, **form}, **options)
    given = {key: torch.rand_like(x) if x.is_floating_point() else x + 7 for key, x in source.state_dict().items()}
    path = tmp_path / "scenes.safetensors"
    save_file(given, path)
    model = build_segmentor(name, {"num_classes": classes, **form}, **options)
    own = {key: x.clone() for key, x in model.state_dict().items()}
    told = load_start(model, path, backbone=model.inner)
    anew = () if classes == 3 else ("decode_head.conv_seg", "auxiliary_head.conv_seg")
    assert told == [
        f"{path}: layers that do not fit here start from random weights: {', '.join(anew)}." for _ in anew[:1]
    ]
    for key, x in model.state_dict().items():
        assert torch.equal(x, own[key] if key.rpartition(".")[0] in anew else given[key]), key


def test_a_detector_of_other_classes_keeps_neck_proposals_and_heads(tmp_path: Path) -> None:
    form = {"channels": 8, "fc_channels": 16}
    source = build_detector("vim_nano", 3, kind="cascade", patch_size=8, **form)
    given = {key: torch.rand_like(x) if x.is_floating_point() else x + 7 for key, x in source.state_dict().items()}
    save_file(given, tmp_path / "boards.safetensors")
    model = build_detector("vim_nano", 1, kind="cascade", patch_size=8, **form)
    (told,) = load_start(model, tmp_path / "boards.safetensors", backbone=model.inner)
    anew = told.removesuffix(".").rpartition(": ")[2].split(", ")
    assert all(name.startswith("stages.") for name in anew)
    for key, x in model.state_dict().items():
        assert torch.equal(x, given[key]) if key.rpartition(".")[0] not in anew else x.shape != given[key].shape, key


def test_a_head_of_another_width_starts_anew_but_for_what_fits(tmp_path: Path) -> None:
    source = build_segmentor("vim_nano", {"num_classes": 3, "channels": 4, "auxiliary_channels": 4}, patch_size=4)
    save_file(source.state_dict(), tmp_path / "narrow.safetensors")
    model = build_segmentor("vim_nano", {"num_classes": 3, "channels": 8, "auxiliary_channels": 4}, patch_size=4)
    (told,) = load_start(model, tmp_path / "narrow.safetensors", backbone=model.inner)
    assert "decode_head." in told and told.endswith(" more.")
    assert torch.equal(model.auxiliary_head.conv_seg.weight, source.auxiliary_head.conv_seg.weight)


def test_layers_of_complex_numbers_are_refused(tmp_path: Path) -> None:
    form = {"num_classes": 3, "channels": 4, "auxiliary_channels": 4}
    source = build_segmentor("vim_nano", form, patch_size=4).state_dict()
    key = "decode_head.conv_seg.weight"
    save_file({**source, key: torch.zeros_like(source[key], dtype=torch.complex64)}, tmp_path / "odd.safetensors")
    model = build_segmentor("vim_nano", form, patch_size=4)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: these weights do not fit: .*conv_seg\.weight"):
        load_start(model, tmp_path / "odd.safetensors", backbone=model.inner)


def test_shipped_weights_are_a_start_by_their_name() -> None:
    model = create_model("vim_nano", num_classes=10, class_token="none", global_pool="avg")
    assert load_start(model, "vim_nano_cifar10") == []
    with pytest.raises(CheckpointError, match=r"weights that ship with vision-ssm: .* Did you mean 'vim_nano_cifar10'"):
        load_start(model, "vim_nano_cifar")
