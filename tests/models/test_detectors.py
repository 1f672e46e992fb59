"""What any detector promises: kinds, backbones, empty images and crowded ones, independence of the batch, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_ssm.analysis import cost
from vision_ssm.errors import CheckpointError, ConfigError, ShapeError
from vision_ssm.models.described import check_described
from vision_ssm.models.detector import KINDS, Detector
from vision_ssm.models.detectors import DETECTORS, build_detector
from vision_ssm.models.registry import create_model, list_models, list_whole_models

SMALL: dict[str, Any] = {"channels": 8, "fc_channels": 16, "mask_convs": 1, "proposals": 30, "detections": 10}
TINY = {"depths": (1, 1, 1, 1), "embed_dim": 8, "patch_size": 4}
BACKBONES = {
    "vmamba_nano": TINY,
    "efficientvmamba_nano": {**TINY, "embed_dim": 16},
    "vim_nano": {"depth": 2, "embed_dim": 16, "class_token": "none"},
    "resnet18": {},
    "vit_tiny_patch16_224": {"dynamic_img_size": True, "depth": 4, "embed_dim": 24},
}


def small(backbone: str = "vmamba_nano", kind: str = "mask", **options: Any) -> Detector:
    torch.manual_seed(0)
    return build_detector(backbone, 3, kind=kind, **{**SMALL, **BACKBONES[backbone], **options}).eval()


def test_a_size_that_timm_asserts_is_told() -> None:
    built = small("vit_tiny_patch16_224", dynamic_img_size=False)
    with pytest.raises(ShapeError, match=r"images of \(64, 96\): .* dynamic_img_size"):
        built([torch.zeros(3, 64, 96)])


def target(boxes: list[list[float]], size: tuple[int, int]) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
    labels = torch.arange(len(boxes)) % 3
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels, "masks": masks}


QUICK = {"vmamba_tiny_s1l8_mask_rcnn_coco", "vim_tiny_cascade_mask_rcnn", "efficientvmamba_base_mask_rcnn_coco"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(DETECTORS)
        if "_3x_" not in name
    ],
)
def test_parameters_are_those_published(name: str) -> None:
    with torch.device("meta"):
        built = create_model(name)
    assert sum(p.numel() for p in built.parameters()) == DETECTORS[name].params
    assert name in list_whole_models()
    assert name not in list_models()


@pytest.mark.parametrize("name", sorted(name for name in DETECTORS if "_3x_" in name))
def test_a_longer_schedule_makes_the_same_model_with_other_weights(name: str) -> None:
    row, shorter = DETECTORS[name], DETECTORS[name.replace("_3x_", "_")]
    assert (row.backbone, row.backbone_options, row.heads, row.params) == (
        shorter.backbone,
        shorter.backbone_options,
        shorter.heads,
        shorter.params,
    )
    assert row.weights != shorter.weights
    assert row.ap_box is not None and shorter.ap_box is not None and row.ap_box > shorter.ap_box


@pytest.mark.parametrize(
    ("depths", "width", "params"), [((2, 2, 9, 2), 48, 28_466_916), ((2, 2, 4, 2), 96, 44_263_704)]
)
def test_the_other_published_configurations_of_a_light_family(depths: Any, width: int, params: int) -> None:
    with torch.device("meta"):
        built = create_model("efficientvmamba_base_mask_rcnn_coco", depths=depths, embed_dim=width)
    assert sum(p.numel() for p in built.parameters()) == params


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("convention", ["mmdet", "detectron2"])
def test_every_kind_trains_and_detects_in_both_conventions(kind: str, convention: str) -> None:
    model, size = small(kind=kind, convention=convention, mask_per_stage=True), (40, 50)
    images, targets = [torch.randn(3, *size)], [target([[4, 4, 30, 35], [10, 20, 45, 30]], size)]
    losses = model.train()(images, targets)
    masks = [name for name in losses if "mask" in name]
    assert len(masks) == (0 if "mask" not in kind else 3 if "cascade" in kind else 1)
    assert len(losses) - len(masks) == (8 if "cascade" in kind else 4)
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    (found,) = model.eval()(images)
    assert {*found} == {"boxes", "labels", "scores", *(["masks"] if "mask" in kind else [])}
    assert 0 < len(found["boxes"]) <= 10
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    if "mask" in kind:
        assert found["masks"].shape == (len(found["boxes"]), 1, *size)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_any_backbone_finds_boxes_inside_images_of_any_size(backbone: str) -> None:
    model = small(backbone, "faster")
    for height, width in ((70, 45), (1, 33), (5, 1)):
        with torch.no_grad():
            (found,) = model([torch.randn(3, height, width)])
        x, y = found["boxes"][:, 0::2], found["boxes"][:, 1::2]
        assert len(x) > 0
        assert float(x.min()) >= 0 and float(x.max()) <= width
        assert float(y.min()) >= 0 and float(y.max()) <= height
        assert {*found["labels"].tolist()} <= {0, 1, 2}


def test_a_result_does_not_depend_on_the_other_images() -> None:
    model = small()
    images = [torch.randn(3, *size) for size in ((40, 50), (33, 64), (90, 20), (64, 40))]
    with torch.no_grad():
        together, alone = model(images), [model([image])[0] for image in images]
        batched = model(torch.stack([images[0], images[0]]))
    for found, expected in [*zip(together, alone, strict=True), *((each, alone[0]) for each in batched)]:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["mask", "cascade_mask"])
def test_what_there_is_to_find_may_be_nothing_tiny_or_very_much(kind: str) -> None:
    model, size = small(kind=kind).train(), (64, 96)
    corners = (torch.rand(500, 2) * torch.tensor([90.0, 60.0])).tolist()
    crowd = target([[x, y, x + 1 + 4 * (i % 2), y + 1] for i, (x, y) in enumerate(corners)], size)
    for targets in ([target([], size), target([], size)], [crowd, target([[5, 5, 6, 6]], size)]):
        model.zero_grad()
        losses = model([torch.randn(3, *size), torch.randn(3, *size)], targets)
        assert all(bool(loss.isfinite()) for loss in losses.values())
        sum(losses.values()).backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert small(kind=kind).train()([torch.randn(3, 1, 40)], [target([[0, 0, 9, 1]], (1, 40))])


@pytest.mark.slow
def test_it_learns_an_image() -> None:
    torch.manual_seed(0)
    model = small(kind="cascade_mask", norm=True).train()
    image = torch.zeros(3, 64, 64)
    image[:, 16:48, 8:40] = 2.0
    given = [target([[8, 16, 40, 48]], (64, 64))]
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        sum(model([image], given).values()).backward()
        optimiser.step()
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["labels"][0] == 0
    assert float(found["scores"][0]) > 0.5
    assert float((found["boxes"][0] - given[0]["boxes"][0]).abs().max()) < 4
    both = found["masks"][0, 0] & given[0]["masks"][0]
    assert int(both.sum()) / int((found["masks"][0, 0] | given[0]["masks"][0]).sum()) > 0.8


def test_results_in_the_pixels_of_another_size() -> None:
    model, image = small(), torch.randn(3, 40, 60)
    with torch.no_grad():
        (own,), (twice,) = model([image]), model([image], sizes=[(80, 30)])
    torch.testing.assert_close(twice["boxes"], own["boxes"] * torch.tensor([0.5, 2, 0.5, 2]))
    assert twice["masks"].shape == (len(own["boxes"]), 1, 80, 30)
    assert torch.equal(twice["scores"], own["scores"])


def test_the_first_stage_of_a_cascade_can_answer_alone() -> None:
    model, image = small(kind="cascade"), torch.randn(3, 40, 60)
    with torch.no_grad():
        whole = model([image])[0]
        for head in model.stages.box_heads[1:]:
            torch.nn.init.normal_(head.classes.weight)
        assert not torch.allclose(model([image])[0]["scores"][:3], whole["scores"][:3])
        model.stages.used = 1
        alone = model([image])[0]
        for head in model.stages.box_heads[1:]:
            torch.nn.init.normal_(head.classes.weight)
        assert torch.equal(model([image])[0]["scores"], alone["scores"])


def test_the_heads_learn_from_as_many_boxes_of_an_image_as_asked_for() -> None:
    model, seen = small(kind="faster", samples=12).train(), []
    model.stages.box_heads[0].register_forward_pre_hook(lambda _m, given: seen.append(len(given[0])))
    model([torch.randn(3, 64, 64)] * 2, [target([[8, 16, 40, 48]], (64, 64))] * 2)
    assert seen == [24]


def test_a_square_holds_every_image() -> None:
    model, seen = small("vim_nano", "faster", square=64), []
    model.backbone.register_forward_pre_hook(lambda _m, given: seen.append(tuple(given[0].shape)))
    with torch.no_grad():
        model([torch.randn(3, 20, 50), torch.randn(3, 65, 10), torch.randn(3, 64, 64)])
    assert sorted(seen) == [(1, 3, 96, 96), (2, 3, 64, 64)]


def test_saved_and_reloaded_it_detects_the_same_and_copies_are_equal() -> None:
    model, other = small(kind="cascade_mask"), small(kind="cascade_mask")
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    image = torch.randn(3, 50, 40)
    with torch.no_grad():
        for again in (other, copy.deepcopy(model)):
            for found, expected in zip(again([image])[0].values(), model([image])[0].values(), strict=True):
                assert torch.equal(found, expected)


def test_half_precision_keeps_boxes_in_place() -> None:
    model, image = small(kind="faster"), torch.randn(3, 64, 64)
    with torch.no_grad():
        exact = model([image])[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model([image])[0]
    assert rough["boxes"].dtype == rough["scores"].dtype == torch.float32
    distance = torch.cdist(rough["boxes"], exact["boxes"], p=float("inf")).amin(dim=1)
    assert float(distance.median()) < 2


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (None, "training needs targets for each of 1 images, got 0"),
        ([target([[3, 3, 3, 9]], (40, 40))], "1 of them empty"),
        ([target([[3, 3, 9, 9]], (40, 40)) | {"labels": torch.tensor([3])}], "labels must be 0 to 2, got 3 to 3"),
        ([target([[3, 3, 9, 9]], (40, 40)) | {"labels": torch.tensor([0, 1])}], "and 2 labels"),
        ([target([[3, 3, 9, 9]], (20, 40))], r"needs masks \[1, 40, 40\] to learn from, got \[1, 20, 40\]"),
    ],
)
def test_wrong_targets_are_told(targets: Any, told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        small().train()([torch.randn(3, 40, 40)], targets)


def test_wrong_images_and_options_are_told() -> None:
    model = small()
    for wrong in ([], [torch.zeros(3, 0, 4)], [torch.zeros(1, 3, 4, 4)], [torch.zeros(3, 4, 4, dtype=torch.uint8)]):
        with pytest.raises(ShapeError, match="expected"):
            model(wrong)
    with pytest.raises(ShapeError, match="targets are for training"):
        model([torch.zeros(3, 4, 4)], [target([], (4, 4))])
    with pytest.raises(ConfigError, match="Did you mean 'cascade_mask'"):
        small(kind="cascademask")
    with pytest.raises(ConfigError, match="has no option 'chanels'"):
        small(chanels=3)
    with pytest.raises(ConfigError, match="with one map, got 2, 4, 8, 16"):
        small(patch_size=2)
    with pytest.raises(CheckpointError, match="no weights were published for vim_tiny_cascade_mask_rcnn"):
        create_model("vim_tiny_cascade_mask_rcnn", pretrained=True)


def test_the_parts_that_depend_on_the_classes_are_those_that_start_anew() -> None:
    from vision_ssm.models.detectors import OF_CLASSES

    name = "vmamba_tiny_s1l8_mask_rcnn_coco"
    with torch.device("meta"):
        whole, own = create_model(name).state_dict(), create_model(name, num_classes=3, in_chans=5).state_dict()
    changed = {key for key in whole if whole[key].shape != own[key].shape}
    anew = {key for key in whole if any(part in key for part in OF_CLASSES)}
    assert changed == {*anew, "backbone.model.patch_embed.conv1.weight"}
    assert len(anew) == 6


def test_a_file_may_describe_a_published_model_with_heads() -> None:
    check_described("vmamba_tiny_s1l8_mask_rcnn_coco", {"drop_path_rate": 0.1, "channels": 128}, 400)
    check_described("vmamba_tiny_s1l8_upernet_ade20k", {"drop_path_rate": 0.1, "auxiliary_channels": 128}, 400)
    with pytest.raises(ConfigError, match="has no option 'chanels' that a file may set"):
        check_described("vmamba_tiny_s1l8_mask_rcnn_coco", {"chanels": 128}, 400)


def test_what_a_detector_costs_is_as_published() -> None:
    found = cost("vmamba_tiny_s1l8_mask_rcnn_coco", (800, 1280))
    assert round(found.macs / 1e9) == 271
    assert found.training_bytes > found.inference_bytes > 0


def test_a_backbone_of_other_strides_is_told_what_gives_them() -> None:
    with pytest.raises(
        ConfigError, match=r"strides 4, 8, 16, 32, .* got 2, 4, 8, 16. Patches of 4 pixels may .*patch_size=4"
    ):
        build_detector("vmamba_nano", 3)
