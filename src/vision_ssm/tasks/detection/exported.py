"""A detector outside this library: the best boxes of one image, as many rows as it may find, in one graph.

Every number of rows is fixed: proposals and detections that there are not are rows of zeros, and every region takes its
features from all maps, of which those of its own are kept. Suppressing boxes is one operator, `BEST`, which formats
write in their own way, as they do torchvision's ``roi_align``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.detection.boxes import apply_deltas, clipped, has_area
from vision_ssm.layers.detection.necks import LEVELS, STRIDES
from vision_ssm.layers.detection.proposals import UNWEIGHTED
from vision_ssm.layers.detection.regions import BOX_SIDE, MASK_SIDE, levels_of
from vision_ssm.layers.detection.suppression import BEST, NEVER
from vision_ssm.models.detector import Detector, finished
from vision_ssm.tasks.detection.meter import CONFIDENT, MATCHED
from vision_ssm.tasks.exported import Form, Run, StandIn

__all__ = ["ExportedDetector", "detector_form"]

SHARE = 0.98
"""Of the detections, at least this share has to have a counterpart in the file's."""

SAME = 1e-3
"""Distance from which on two detections count as different answers."""

SCORES, BOXES, MASKS = "scores", "boxes", "masks"


def detector_form(model: Detector) -> Form:
    """Return what is exported of a detector, of one image whose sides are those that it is padded to.

    ``scores`` [1, classes, N] holds the score of each detection in the row of its class, the best first, and zeros;
    ``boxes`` [1, N, 4] are in pixels of the image; ``masks`` [1, N, 28, 28] are probabilities within the box. No score
    is too low to be among them.
    """
    names = (SCORES, BOXES, MASKS) if model.stages.mask_heads else (SCORES, BOXES)
    return Form(
        _Detected(model),
        names,
        any_size=False,
        any_batch=False,
        of_torch=False,
        compare=compared,
        compare_int8=compared_by_overlap,
    )


def compared(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, int, int]:
    """Compare detections of one image as `vision_ssm.tasks.exported.Compare` says.

    Each is compared with the nearest one of its class. Two in a hundred may have no counterpart: where two boxes
    overlap by just the threshold of suppression, rounding decides which goes.
    """
    (scores, labels), (right, classes) = (each[0][0].max(dim=0) for each in (found, expected))
    rows = right > 0
    boxes, aims = found[1][0], expected[1][0][rows]
    if not len(aims):
        return float(scores.max()), int(scores.max() == 0), 1
    apart = (boxes[None] - aims[:, None]).abs().amax(dim=2) / aims.abs().max().clamp(min=1)
    off = (scores[None] - right[rows][:, None]).abs() / right.max().clamp(min=1e-9)
    distance = torch.maximum(apart, off).masked_fill(labels[None] != classes[rows][:, None], 1)
    errors, nearest = distance.min(dim=1)
    if len(found) > len((SCORES, BOXES)):
        errors = torch.maximum(errors, (found[2][0, nearest] - expected[2][0, rows]).abs().flatten(1).amax(dim=1))
    surplus = errors.new_ones(max(int((scores > 0).sum()) - len(aims), 0))
    errors = torch.cat([errors, surplus]).sort().values
    return float(errors[: math.ceil(SHARE * len(errors))].max()), int((errors < SAME).sum()), len(errors)


def compared_by_overlap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, int, int]:
    """Compare the confident detections of one image as `vision_ssm.tasks.exported.Compare` says.

    Products in whole numbers move every box a little, have others suppressed and turn pixels of masks, so what is
    compared is what is shown of an image:

        error = 1 - mean over confident detections of either of  max IoU with those of the other

    of its class with at least half of its score. With masks the IoU of a pair is the smaller of that of its boxes and
    that of its masks, each within its box.
    """
    overlaps = torch.cat([_best_overlaps(found, expected), _best_overlaps(expected, found)])
    if not len(overlaps):
        return 0.0, 1, 1
    return 1 - float(overlaps.mean()), int((overlaps >= MATCHED).sum()), len(overlaps)


def _best_overlaps(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return for each confident detection of the ones its largest IoU with the others."""
    (scores, labels), (counter_scores, counter_labels) = (each[0][0].max(dim=0) for each in (ones, others))
    rows = scores >= CONFIDENT
    overlaps: Tensor = box_iou(ones[1][0, rows], others[1][0])
    if len(ones) > len((SCORES, BOXES)):
        inside, counter_inside = ((each[2][0] >= 0.5).flatten(1).float() for each in (ones, others))
        both = inside[rows] @ counter_inside.T
        either = inside[rows].sum(dim=1)[:, None] + counter_inside.sum(dim=1) - both
        overlaps = torch.minimum(overlaps, both / either.clamp(min=1))
    alike = (labels[rows][:, None] == counter_labels) & (counter_scores >= scores[rows][:, None] / 2)
    return overlaps.masked_fill(~alike, 0).amax(dim=1)


class _Detected(nn.Module):
    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (int(images.shape[2]), int(images.shape[3]))
        padded = self.model.padded_size(images[0])
        if padded != size:
            raise ConfigError(
                f"this detector pads images of {size[0]}x{size[1]} to {padded[0]}x{padded[1]}; give --img-size that."
            )
        maps = self.model.maps(images)
        proposals, there = self._proposed(maps, size)
        boxes, labels, scores = self._detections(maps, proposals, there, size)
        classes = torch.arange(self.model.num_classes)[:, None]
        by_class = torch.where(classes == labels, scores, torch.zeros_like(scores))
        outputs = [by_class[None], boxes[None]]
        if self.model.stages.mask_heads:
            outputs.append(self._masks(maps, boxes, labels)[None])
        return tuple(outputs)

    def _proposed(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the proposals [P, 4], zeros where there are no more, and whether there is one [P]."""
        rpn = self.model.rpn
        found = rpn(maps)
        boxes, scores, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(zip(found.logits, found.deltas, found.anchors, strict=True)):
            rank = logits[0].sigmoid() if rpn.convention.rank_by_probability else logits[0]
            value, index = rank.topk(min(rpn.proposals, len(rank)))
            bounded = rpn.convention.deltas_bounded_below
            moved = apply_deltas(deltas[0, index][:, None], anchors[index], UNWEIGHTED, bounded_below=bounded)
            boxes.append(clipped(moved[:, 0], size))
            scores.append(torch.where(has_area(boxes[-1]), value, torch.full_like(value, -torch.inf)))
            levels.append(torch.full_like(index, level))
        together = torch.cat(boxes)
        kept = BEST(together, torch.cat(scores), torch.cat(levels), rpn.overlap, NEVER, rpn.proposals)
        there = kept >= 0
        return torch.where(there[:, None], together[kept.clamp(min=0)], torch.zeros(())), there

    def _detections(
        self, maps: Sequence[Tensor], proposals: Tensor, there: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [N, 4], classes [N] and scores [N], the best first, zeros where there are no more."""
        stages, classes = self.model.stages, self.model.num_classes
        boxes, total, candidates = proposals, torch.zeros(()), proposals[:, None]
        for stage in range(stages.used):
            logits, deltas = stages.box_heads[stage](self._features(maps, boxes, BOX_SIDE))
            total = total + logits.softmax(dim=1)
            candidates = clipped(stages.moved(stage, deltas, boxes), size)
            boxes = candidates[:, 0]
        scores = torch.where(there[:, None], total[:, :classes] / stages.used, torch.zeros(())).flatten()
        every = candidates.expand(-1, classes, -1).reshape(-1, 4)
        labels = torch.arange(classes).repeat(len(proposals))
        # What is below the score threshold suppresses nothing above it, so the one who reads the file may cut there.
        kept = BEST(every, scores, labels, stages.nms_threshold, 0.0, stages.detections)
        row, found = kept.clamp(min=0), kept >= 0
        nothing = torch.zeros(())
        return torch.where(found[:, None], every[row], nothing), labels[row], torch.where(found, scores[row], nothing)

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return probabilities [N, 28, 28] of the boxes, those of the class of each."""
        features, rows = self._features(maps, boxes, MASK_SIDE), torch.arange(len(boxes))
        grids = [head(features)[rows, labels].sigmoid() for head in self.model.stages.mask_heads]
        there = has_area(boxes)[:, None, None]
        return torch.where(there, torch.stack(grids).mean(dim=0), torch.zeros(()))

    def _features(self, maps: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
        """Return the features [N, C, side, side] of boxes: on the maps that are not theirs they are a pixel wide."""
        levels = levels_of(boxes, self.model.stages.convention)
        pixel, image = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.zeros_like(boxes[:, :1])
        features: Tensor | None = None
        for level, (x, stride) in enumerate(zip(maps[:LEVELS], STRIDES[:LEVELS], strict=True)):
            own = (levels == level)[:, None]
            regions = torch.cat([image, torch.where(own, boxes, pixel)], dim=1)
            found = roi_align(x, regions, side, 1 / stride, 0, aligned=True)
            features = found if features is None else torch.where(own[:, :, None, None], found, features)
        if features is None:
            raise ShapeError("expected maps of the image, got none")
        return features


class ExportedDetector(StandIn):
    """Takes the place of a detector.

    Args:
        run: of the file.
        threshold: what is less probable is no detection.

    An image that is smaller than the file's is padded as the detector pads, below and to the right. Proposals are then
    cut to the padded image, so boxes at the edges of such an image may differ a little from those of the weights.
    """

    def __init__(self, run: Run, threshold: float) -> None:
        super().__init__(run)
        self.threshold = threshold

    @property
    def inner(self) -> StandIn:
        """There is no backbone apart."""
        return self

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Detect; see `vision_ssm.models.detector.Detector.forward`. ``targets`` are for training."""
        if targets is not None:
            raise ShapeError("an exported detector does not learn; leave targets out")
        wanted: Any = [tuple(image.shape[1:]) for image in images] if sizes is None else sizes
        return [self._one(image, to) for image, to in zip(images, wanted, strict=True)]

    def _one(self, image: Tensor, to: tuple[int, int]) -> dict[str, Tensor]:
        size = (int(image.shape[1]), int(image.shape[2]))
        height, width = self.run.size or size
        room = (max(width - size[1], 0), max(height - size[0], 0))
        found = self.outputs(F.pad(image, (0, room[0], 0, room[1]))[None])
        scores, labels = found[SCORES][0].max(dim=0)
        there = scores > self.threshold
        boxes, grid = clipped(found[BOXES][0][there], size), found.get(MASKS)
        return finished(boxes, labels[there], scores[there], None if grid is None else grid[0][there], size, to)
