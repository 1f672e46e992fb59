"""The second stage: proposals to detections, once or in a cascade whose stages each start from the last one's boxes.

    in training: b_1 sampled proposals, matched at IoU t_1;  b_(k+1) = moved(b_k), matched at t_(k+1)
    else:        probabilities = mean over k of softmax(classes_k(b_k));  boxes = moved(b_K)

Source: Fast R-CNN, arXiv:1504.08083; Cascade R-CNN, arXiv:1712.00726; the detectron2 in hustvl/Vim at dd0358a for what
the stages after the first are trained on: all boxes of the stage before, none sampled again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from vision_ssm.layers.detection.boxes import apply_deltas, clipped, deltas_between, has_area
from vision_ssm.layers.detection.conventions import Convention
from vision_ssm.layers.detection.masks import mask_targets
from vision_ssm.layers.detection.matching import Matches, match, sample
from vision_ssm.layers.detection.regions import BOX_SIDE, MASK_SIDE, BoxHead, MaskHead, region_features

__all__ = ["Learned", "Objects", "RegionStages"]

Size = tuple[int, int]


class Objects(NamedTuple):
    """What there is on an image: boxes [G, 4], class indices [G], and masks [G, H, W] or None."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


class Learned(NamedTuple):
    """What a stage learns from on an image.

    Attributes:
        boxes: [N, 4].
        labels: [N] class of each, the count of classes for the background.
        positive: [P] which boxes are to find an object.
        objects: [P] index of it.
        aims: [P, 4] its box.
    """

    boxes: Tensor
    labels: Tensor
    positive: Tensor
    objects: Tensor
    aims: Tensor


class RegionStages(nn.Module):
    """All box heads and mask heads of a detector.

    Args:
        box_heads: one, or one per stage of a cascade, which are then class-agnostic.
        mask_heads: none, one (which learns from the first stage's boxes), or one per stage.
        num_classes: without the background.
        convention: see `conventions.py`.
        overlaps: IoU from which a box is to find an object, per stage.
        weights: of the deltas, per stage.
        samples: proposals per image that the heads learn from.
        score_threshold: what is less probable is no detection.
        nms_threshold: IoU of two detections of a class above which the less probable one goes.
        detections: the most of an image.

    ``used`` is how many stages detect, all at first: with 1 the first one of a cascade answers alone, which shows what
    the others add.
    """

    share = 0.25  # of the samples, at most so many find an object

    def __init__(
        self,
        box_heads: Sequence[BoxHead],
        mask_heads: Sequence[MaskHead],
        num_classes: int,
        convention: Convention,
        *,
        overlaps: Sequence[float],
        weights: Sequence[Sequence[float]],
        samples: int,
        score_threshold: float,
        nms_threshold: float,
        detections: int,
    ) -> None:
        super().__init__()
        self.box_heads, self.mask_heads = nn.ModuleList(box_heads), nn.ModuleList(mask_heads)
        self.num_classes, self.convention, self.used = num_classes, convention, len(box_heads)
        self.samples = samples
        self.overlaps, self.weights = tuple(overlaps), tuple(map(tuple, weights))
        self.score_threshold, self.nms_threshold, self.detections = score_threshold, nms_threshold, detections

    # -------------------------------------------------------------------------------------------------- detection

    def run(self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits [N, classes + 1] and deltas [N, 1 or classes, 4] of a stage for the boxes of all images."""
        features = region_features(maps, boxes, BOX_SIDE, self.convention)
        if self.training:  # every stage sends as much back into the maps as one stage alone would
            features = _scaled_gradient(features, 1 / len(self.box_heads))
        found: tuple[Tensor, Tensor] = self.box_heads[stage](features)
        return found

    def moved(self, stage: int, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes [N, 1 or classes, 4] that a stage moved from [N, 4], not yet cut to the image."""
        bounded = self.convention.deltas_bounded_below
        return apply_deltas(deltas, boxes, self.weights[stage], bounded_below=bounded)

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return boxes [N, 4], class indices [N] and scores [N] of every image, the best first.

        Args:
            maps: of the batch.
            proposals: [n, 4] of each image.
            sizes: (H, W) of each image before it was padded.
        """
        counts, boxes = [len(each) for each in proposals], list(proposals)
        total = torch.zeros((), device=maps[0].device)
        candidates: list[Tensor] = []
        for stage in range(self.used):
            logits, deltas = self.run(stage, maps, boxes)
            total = total + logits.softmax(dim=1)
            moved = self.moved(stage, deltas, torch.cat(boxes)).split_with_sizes(counts)
            candidates = [clipped(each, size) for each, size in zip(moved, sizes, strict=True)]
            boxes = [each[:, 0] for each in candidates]  # where there is a next stage they are of no class
        probabilities = (total / self.used).split_with_sizes(counts)
        return [self._best(each, of_image) for each, of_image in zip(candidates, probabilities, strict=True)]

    def _best(self, boxes: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = probabilities[:, : self.num_classes]
        rows, labels = torch.where(scores > self.score_threshold)
        scores = scores[rows, labels]
        boxes = boxes.expand(-1, self.num_classes, -1)[rows, labels]
        kept = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections]
        return boxes[kept], labels[kept], scores[kept]

    def masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Return probabilities [N, 28, 28] of each image's boxes [N, 4], those of the class of each [N]."""
        features = region_features(maps, boxes, MASK_SIDE, self.convention)
        classes = torch.cat(list(labels))
        rows = torch.arange(len(classes), device=classes.device)
        found = torch.stack([head(features)[rows, classes].sigmoid() for head in self.mask_heads]).mean(dim=0)
        return list(found.split_with_sizes([len(each) for each in boxes]))

    # --------------------------------------------------------------------------------------------------- training

    def losses(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], objects: Sequence[Objects], sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """Return the losses by their names.

        Args:
            maps: of the batch.
            proposals: [n, 4] of each image.
            objects: of each image.
            sizes: (H, W) of each image before it was padded.
        """
        losses: dict[str, Tensor] = {}
        cascade = len(self.box_heads) > 1
        learned = [self.first(boxes, each) for boxes, each in zip(proposals, objects, strict=True)]
        for stage in range(len(self.box_heads)):
            ending = f"_stage{stage}" if cascade else ""
            boxes = [each.boxes for each in learned]
            logits, deltas = self.run(stage, maps, boxes)
            losses |= self._box_losses(stage, logits, deltas, learned, ending)
            if stage < len(self.mask_heads):
                name = f"loss_mask{ending}" if len(self.mask_heads) > 1 else "loss_mask"
                losses[name] = self._mask_loss(stage, maps, learned, objects)
            if stage + 1 < len(self.box_heads):
                moved = self.moved(stage, deltas.detach(), torch.cat(boxes)).split_with_sizes(list(map(len, boxes)))
                learned = [
                    self.next(stage + 1, clipped(each[:, 0], size), of_image)
                    for each, size, of_image in zip(moved, sizes, objects, strict=True)
                ]
        return losses

    def first(self, proposals: Tensor, objects: Objects) -> Learned:
        """Choose what the first stage learns from: of proposals [N, 4] and the objects themselves."""
        convention, count = self.convention, len(objects.boxes)
        if not convention.objects_first:
            proposals = torch.cat([proposals, objects.boxes])
        matches = match(
            proposals,
            objects.boxes,
            below=self.overlaps[0],
            above=self.overlaps[0],
            least_best=convention.least_best_region,
            best_takes_over=convention.best_takes_over,
        )
        if convention.objects_first:
            proposals = torch.cat([objects.boxes, proposals])
            own = torch.arange(count, device=proposals.device)
            matches = Matches(torch.cat([own, matches.objects]), torch.cat([torch.ones_like(own), matches.kinds]))
        chosen = torch.cat(sample(matches.kinds, self.samples, self.share))
        return self._learned(proposals[chosen], Matches(*(part[chosen] for part in matches)), objects)

    def next(self, stage: int, boxes: Tensor, objects: Objects) -> Learned:
        """Choose what a later stage learns from: all boxes [N, 4] that the one before it made, but for empty ones."""
        boxes = boxes[has_area(boxes)]
        limit = self.overlaps[stage]
        return self._learned(boxes, match(boxes, objects.boxes, below=limit, above=limit), objects)

    def _learned(self, boxes: Tensor, matches: Matches, objects: Objects) -> Learned:
        positive = torch.where(matches.kinds == 1)[0]
        found = matches.objects[positive]
        labels = torch.full_like(matches.objects, self.num_classes)
        labels[positive] = objects.labels[found]
        return Learned(boxes, labels, positive, found, objects.boxes[found])

    def _box_losses(
        self, stage: int, logits: Tensor, deltas: Tensor, learned: Sequence[Learned], ending: str
    ) -> dict[str, Tensor]:
        labels = torch.cat([each.labels for each in learned])
        rows = torch.where(labels < self.num_classes)[0]
        boxes, aims = torch.cat([each.boxes for each in learned]), torch.cat([each.aims for each in learned])
        moves = deltas_between(boxes[rows], aims, self.weights[stage])
        own = deltas[rows, 0 if deltas.shape[1] == 1 else labels[rows]]
        count = max(len(labels), 1)
        return {
            f"loss_cls{ending}": F.cross_entropy(logits, labels, reduction="sum") / count,
            f"{self.convention.box_loss}{ending}": (own - moves).abs().sum() / count,
        }

    def _mask_loss(
        self, stage: int, maps: Sequence[Tensor], learned: Sequence[Learned], objects: Sequence[Objects]
    ) -> Tensor:
        boxes = [each.boxes[each.positive] for each in learned]
        labels = torch.cat([each.labels[each.positive] for each in learned])
        logits = self.mask_heads[stage](region_features(maps, boxes, MASK_SIDE, self.convention))
        targets = [
            mask_targets(of_image, each.masks, own.objects, logits.shape[-1])
            for of_image, own, each in zip(boxes, learned, objects, strict=True)
            if each.masks is not None
        ]
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        total = F.binary_cross_entropy_with_logits(own, torch.cat(targets), reduction="sum")
        mean: Tensor = total / max(own.numel(), 1)
        return mean


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, whose gradient is multiplied by a factor on its way back."""
    scaled: Tensor = x if factor == 1 else x.detach() + factor * (x - x.detach())
    return scaled
