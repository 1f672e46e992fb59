"""Published detectors against what was recorded from them: maps, proposals, heads, detections, masks, losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.recorded import fill, image, relative
from vision_ssm.checkpoints import detectors as layout
from vision_ssm.checkpoints import load_published, vim, vmamba
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.layers.detection.boxes import clipped
from vision_ssm.layers.detection.masks import mask_targets
from vision_ssm.layers.detection.matching import sample
from vision_ssm.layers.detection.regions import levels_of, region_features
from vision_ssm.layers.detection.stages import Objects
from vision_ssm.models.detector import Detector, _padded
from vision_ssm.models.registry import create_model

GOLDEN = Path(__file__).parent.parent / "golden" / "dense"
VMAMBA, RAW = "vmamba_tiny_mask_rcnn_320x416", "vmamba_tiny_mask_rcnn_raw_300x400"
CASCADE, CASCADE_WHOLE = "vim_tiny_cascade_320", "vim_tiny_cascade_1024"


def recording(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def filled(model_name: str, recorded: dict[str, Any], **options: Any) -> Detector:
    keys = json.loads(str(recorded["keys"]))
    weights = {name: torch.from_numpy(np.asarray(fill(name, tuple(shape)))) for name, shape, _ in keys}
    model = create_model(model_name, drop_path_rate=0.0, **options).eval()
    load_published(model, {"state_dict": weights})
    model.stages.detections = 20
    assert isinstance(model, Detector)
    return model


class Ran(NamedTuple):
    """A detector that has looked at its recording's image, once."""

    recorded: dict[str, Any]
    model: Detector
    image: Tensor
    maps: list[Tensor]
    raw: dict[str, list[Tensor]]  # the maps of logits and deltas
    found: Any
    proposals: tuple[Tensor, Tensor]

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]

    def expected(self, name: str) -> Any:
        """The number in float64 where it was kept."""
        return self.recorded.get(f"{name}_f64", self.recorded[name])

    def probe(self, x: Tensor, name: str) -> float:
        places = torch.from_numpy(self.recorded[f"{name}_pos"]).long()
        assert list(x.shape) == self.recorded[f"{name}_shape"].tolist()
        return relative(x[0][:, places[:, 0], places[:, 1]].T, self.expected(f"{name}_probe"))


def ran(recorded: dict[str, Any], model: Detector, given: Tensor) -> Ran:
    raw: dict[str, list[Tensor]] = {"cls": [], "reg": []}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: raw[name].append(output))
        for name, module in (("cls", model.rpn.logits), ("reg", model.rpn.deltas))
    ]
    with torch.no_grad():
        maps = model.maps(_padded([given], model.padded_size(given)))
        found = model.rpn(maps)
        (proposals,) = model.rpn.propose(found, [(given.shape[1], given.shape[2])])
    for handle in handles:
        handle.remove()
    return Ran(recorded, model, given, maps, raw, found, proposals)


@pytest.fixture(scope="module")
def mask_rcnn() -> Ran:
    recorded = recording(VMAMBA)
    return ran(recorded, filled("vmamba_tiny_s1l8_mask_rcnn_coco", recorded), image(320, 416, 1)[0])


@pytest.fixture(scope="module")
def cascade() -> Ran:
    recorded = recording(CASCADE)
    model = filled("vim_tiny_cascade_mask_rcnn", recorded, img_size=320, square=320)
    return ran(recorded, model, image(320, 320, 1)[0])


def check_first_stage(has: Ran, score: str, maps: list[str]) -> None:
    for x, name in zip(has.maps, maps, strict=True):
        assert has.probe(x, name) < 1e-5, name
    for level in range(5):
        assert has.probe(has.raw["cls"][level], f"rpn_cls{level}") < 1e-5
        assert has.probe(has.raw["reg"][level], f"rpn_reg{level}") < 1e-5
        rank = has.found.logits[level][0]
        rank = rank.sigmoid() if score == "score" else rank
        index = torch.from_numpy(has.recorded[f"rpn_top_index{level}"].astype(np.int64))
        # Anchors whose scores differ by rounding change places from machine to machine.
        close(rank.topk(len(index)).values, rank[index].numpy(), 1e-6 if score == "score" else 1e-5)
        close(rank[index], has.recorded[f"rpn_top_{score}{level}"], 1e-5)
        moved = has.model.rpn._moved(has.found.deltas[level][0, index], has.found.anchors[level][index])
        close(clipped(moved, has.size), has.recorded[f"rpn_top_box{level}"], 1e-2)


def close(found: Tensor, expected: Any, within: float) -> None:
    difference = (found.double() - torch.from_numpy(np.asarray(expected, np.float64))).abs()
    assert difference.numel() == 0 or float(difference.max()) < within


def same_set(found: Tensor, expected: Any) -> None:
    distance = torch.cdist(found.double(), torch.from_numpy(np.asarray(expected, np.float64)), p=float("inf"))
    assert max(float(distance.amin(dim).max()) for dim in (0, 1)) < 1e-2


def check_heads_of_masks(has: Ran) -> None:
    boxes = torch.from_numpy(has.recorded["mask_boxes"])
    with torch.no_grad():
        features = region_features(has.maps, [boxes], 14, has.model.stages.convention)
        logits = has.model.stages.mask_heads[0](features)
    assert relative(features[:, ::64], has.recorded["mask_roi_feats_probe"]) < 1e-5
    assert relative(logits[:, has.recorded["mask_classes"]], has.recorded["mask_logits_probe"]) < 1e-5
    assert relative(logits.mean((2, 3)), has.recorded["mask_logits_class_means"]) < 1e-5


def unpacked(recorded: dict[str, Any], name: str) -> Tensor:
    count, height, width = recorded[f"{name}_shape"].tolist()
    bits = np.unpackbits(recorded[f"{name}_packed"], axis=1)[:, : height * width]
    return torch.from_numpy(bits.reshape(count, height, width)).bool()


def check_detections(
    has: Ran, sizes: list[tuple[int, int]] | None, monkeypatch: pytest.MonkeyPatch | None = None
) -> None:
    """With ``monkeypatch`` the maps are those that the image has been seen to have, for speed."""
    if monkeypatch is not None:
        monkeypatch.setattr(has.model, "maps", lambda batch: has.maps)
    with torch.no_grad():
        (result,) = has.model([has.image], sizes=sizes)
    close(result["boxes"], has.expected("det_boxes"), 1e-2)
    close(result["scores"], has.recorded["det_scores"], 1e-5)
    assert result["labels"].tolist() == has.recorded["det_labels"].tolist()
    assert int((result["masks"][:, 0] != unpacked(has.recorded, "det_masks")).sum()) <= 10


def objects_of(recorded: dict[str, Any]) -> Objects:
    boxes, labels = torch.from_numpy(recorded["gt_boxes"]), torch.from_numpy(recorded["gt_labels"])
    return Objects(boxes, labels, unpacked(recorded, "gt_masks"))


def check_training(has: Ran, family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", torch.arange)
    expected = json.loads(str(has.recorded["losses_f64"]))
    model = has.model.train()
    losses = model([has.image], [objects_of(has.recorded)._asdict()])
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-5), name
    total = sum(losses.values())
    assert total.item() == pytest.approx(expected["total"], rel=1e-5)
    total.backward()
    own = {name: p.grad for name, p in model.named_parameters()}
    model.eval()
    assert all(grad is not None for grad in own.values())
    inside = {name.removeprefix("backbone.model."): g for name, g in own.items() if name.startswith("backbone.")}
    whole = {name: g for name, g in own.items() if not name.startswith("backbone.")}
    grads = layout.to_published(whole | {f"backbone.{n}": g for n, g in family.to_published(inside).items()})
    names, norms = json.loads(str(has.recorded["grad_names"])), has.recorded["grad_norms_f64"].tolist()
    assert sorted(grads) == sorted(names)
    off = {n: abs(float(grads[n].norm()) / norm - 1) for n, norm in zip(names, norms, strict=True) if norm > 1e-6}
    assert len(off) > 0.95 * len(names)
    assert max(off.values()) < 5e-3, max(off.items(), key=lambda item: item[1])
    assert sorted(off.values())[len(off) // 2] < 5e-4


# ------------------------------------------------------------------------------------------- VMamba, Mask R-CNN


def test_mask_rcnn_finds_the_published_proposals(mask_rcnn: Ran) -> None:
    check_first_stage(mask_rcnn, "score", [f"fpn{level}" for level in range(5)])
    boxes, scores = mask_rcnn.proposals
    same_set(boxes, mask_rcnn.recorded["proposals"])
    close(scores, mask_rcnn.recorded["proposal_scores"], 1e-5)


def test_mask_rcnns_heads_give_the_published_numbers(mask_rcnn: Ran) -> None:
    recorded, stages = mask_rcnn.recorded, mask_rcnn.model.stages
    boxes = torch.from_numpy(recorded["boxes"])
    assert levels_of(boxes, stages.convention).tolist() == recorded["box_levels"].tolist()
    with torch.no_grad():
        features = region_features(mask_rcnn.maps, [boxes], 7, stages.convention)
        classes, deltas = stages.run(0, mask_rcnn.maps, [boxes])
    assert relative(features[:, ::32], recorded["box_roi_feats_probe"]) < 1e-5
    assert relative(classes, recorded["box_cls_f64"]) < 1e-5
    assert relative(deltas.flatten(1), recorded["box_reg_f64"]) < 1e-5
    moved = clipped(stages.moved(0, deltas, boxes), mask_rcnn.size)
    close(moved[:, recorded["box_decoded_classes"]], recorded["box_decoded"], 1e-2)
    check_heads_of_masks(mask_rcnn)


def test_mask_rcnn_detects_what_was_published(mask_rcnn: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    check_detections(mask_rcnn, None, monkeypatch)


def test_mask_rcnn_samples_the_published_anchors_and_regions(mask_rcnn: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", torch.arange)
    recorded, model, objects = mask_rcnn.recorded, mask_rcnn.model, objects_of(mask_rcnn.recorded)
    matches = model.rpn.matched(mask_rcnn.found, objects.boxes, (320, 416))
    positive, negative = sample(matches.kinds, model.rpn.samples, model.rpn.share)
    assert positive.tolist() == recorded["rpn_pos_index"].tolist()
    assert negative.tolist() == recorded["rpn_neg_index"].tolist()
    assert matches.objects[positive].tolist() == recorded["rpn_pos_gt"].tolist()
    learned = model.stages.first(torch.from_numpy(recorded["train_proposals"]), objects)
    assert learned.objects.tolist() == recorded["rcnn_pos_gt"].tolist()
    close(learned.boxes[learned.positive], recorded["rcnn_pos_boxes"], 1e-6)
    candidates = torch.cat([objects.boxes, torch.from_numpy(recorded["train_proposals"])])
    chosen = np.concatenate([recorded["rcnn_pos_index"], recorded["rcnn_neg_index"]])
    close(learned.boxes, candidates[chosen], 1e-6)
    targets = mask_targets(learned.boxes[learned.positive], objects.masks, learned.objects, 28)  # type: ignore[arg-type]
    assert torch.equal(targets.bool(), unpacked(recorded, "mask_targets"))


def test_training_mask_rcnn_gives_the_published_losses_and_gradients(
    mask_rcnn: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_training(mask_rcnn, vmamba, monkeypatch)


def test_a_file_goes_through_our_own_preprocessing_to_the_published_detections(mask_rcnn: Ran) -> None:
    recorded = recording(RAW)
    pixels = np.random.RandomState(3).randint(0, 256, (300, 400, 3)).astype(np.uint8)[..., ::-1]
    given = Normalise(Preprocessing())(pixels)
    has = Ran(recorded, mask_rcnn.model, given, [], {}, None, (given, given))
    assert has.probe(_padded([given], (320, 416)), "input") < 1e-6
    check_detections(has, [(240, 320)])


# ------------------------------------------------------------------------------------- Vim, Cascade Mask R-CNN


def check_cascade(has: Ran) -> None:
    stages = has.model.stages
    boxes, total = torch.from_numpy(has.recorded["boxes"]), torch.zeros(())
    with torch.no_grad():
        for stage in range(3):
            close(boxes, has.recorded[f"stage{stage}_boxes_in"], 1e-2)
            classes, deltas = stages.run(stage, has.maps, [boxes])
            assert relative(classes, has.expected(f"stage{stage}_cls")) < 2e-5
            assert relative(deltas[:, 0], has.expected(f"stage{stage}_deltas")) < 2e-5
            moved = stages.moved(stage, deltas, boxes)[:, 0]
            close(moved, has.recorded[f"stage{stage}_boxes_out"], 1e-2)
            boxes, total = clipped(moved, has.size), total + classes.softmax(1)
    assert relative(total / 3, has.recorded["mean_probs"]) < 1e-5
    check_heads_of_masks(has)


def test_the_cascade_finds_the_published_proposals(cascade: Ran) -> None:
    assert cascade.probe(cascade.model.backbone(cascade.image[None])[0], "backbone") < 1e-5
    check_first_stage(cascade, "logit", [f"p{level}" for level in range(2, 7)])
    boxes, logits = cascade.proposals
    same_set(boxes, cascade.recorded["proposals"])
    close(logits, cascade.recorded["proposal_logits"], 2e-5)


def test_the_cascades_stages_give_the_published_numbers(cascade: Ran) -> None:
    check_cascade(cascade)


def test_the_cascade_learns_from_the_published_boxes(cascade: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", torch.arange)
    recorded, model, objects = cascade.recorded, cascade.model, objects_of(cascade.recorded)
    matches = model.rpn.matched(cascade.found, objects.boxes, (320, 320))
    positive, negative = sample(matches.kinds, model.rpn.samples, model.rpn.share)
    assert positive.tolist() == recorded["rpn_pos_index"].tolist()
    assert negative.tolist() == recorded["rpn_neg_index"].tolist()
    close(objects.boxes[matches.objects[positive]], recorded["rpn_pos_gt_boxes"], 1e-6)
    learned = model.stages.first(torch.from_numpy(recorded["train_proposals"]), objects)
    close(learned.boxes, recorded["stage0_train_boxes"], 1e-6)
    assert learned.labels.tolist() == recorded["stage0_train_labels"].tolist()
    targets = mask_targets(learned.boxes[learned.positive], objects.masks, learned.objects, 28)  # type: ignore[arg-type]
    assert torch.equal(targets.bool(), unpacked(recorded, "mask_targets"))
    for stage in (1, 2):
        later = model.stages.next(stage, torch.from_numpy(recorded[f"stage{stage}_train_boxes"]), objects)
        assert later.labels.tolist() == recorded[f"stage{stage}_train_labels"].tolist()


@pytest.mark.slow
def test_the_cascade_detects_what_was_published(cascade: Ran) -> None:
    cascade.model.stages.score_threshold = 0.02
    check_detections(cascade, None)


@pytest.mark.slow
def test_training_the_cascade_gives_the_published_losses_and_gradients(
    cascade: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_training(cascade, vim, monkeypatch)


@pytest.mark.slow
def test_the_cascade_at_its_published_size() -> None:
    recorded = recording(CASCADE_WHOLE)
    pixels = np.random.RandomState(3).randint(0, 256, (640, 1024, 3)).astype(np.uint8)
    model = filled("vim_tiny_cascade_mask_rcnn", recorded)
    has = ran(recorded, model, Normalise(Preprocessing())(pixels))
    check_first_stage(has, "logit", [f"p{level}" for level in range(2, 7)])
    same_set(has.proposals[0], recorded["proposals"])
    check_cascade(has)
    model.stages.score_threshold = 0.02
    check_detections(has, [(400, 640)])
