"""A detector: a backbone's maps, five maps of one width, proposals, and the heads that make detections of them.

    X = backbone(images)                                          maps at strides 4, 8, 16 and 32, or one map
    P = neck(X)                                                   strides 4 to 64; layers/detection/necks.py
    boxes = proposals(P)                                          layers/detection/proposals.py
    detections = stages(P, boxes)                                 layers/detection/stages.py

Source: Faster R-CNN, arXiv:1506.01497; Mask R-CNN, arXiv:1703.06870; Cascade R-CNN, arXiv:1712.00726.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.detection.anchors import RATIOS
from vision_ssm.layers.detection.boxes import has_area, rescaled
from vision_ssm.layers.detection.conventions import convention_named
from vision_ssm.layers.detection.masks import pasted
from vision_ssm.layers.detection.necks import FPN, SimplePyramid
from vision_ssm.layers.detection.proposals import ProposalStage
from vision_ssm.layers.detection.regions import MASK_SIDE, BoxHead, MaskHead, region_features
from vision_ssm.layers.detection.stages import Objects, RegionStages
from vision_ssm.layers.options import check_choice, check_count, check_flags, check_rates
from vision_ssm.models.pyramid import REDUCTIONS, maps_of, other_patches

__all__ = ["KINDS", "Detector", "finished"]

DIVISOR = 32

KINDS = {
    # name: (IoU of each stage, whether there are masks)
    "faster": ((0.5,), False),
    "mask": ((0.5,), True),
    "cascade": ((0.5, 0.6, 0.7), False),
    "cascade_mask": ((0.5, 0.6, 0.7), True),
}
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

Size = tuple[int, int]


class Detector(nn.Module):
    """Faster, Mask or Cascade R-CNN around a backbone.

    Args:
        backbone: of timm's ``features_only`` form, with maps at strides 4, 8, 16 and 32, which FPN joins, or with one
            map, of which the simple feature pyramid is made.
        num_classes: without the background.
        kind: 'faster' (boxes), 'mask' (boxes and masks), 'cascade' or 'cascade_mask' (three stages of boxes).
        convention: 'mmdet' or 'detectron2', see `vision_ssm.layers.detection.conventions`. None: the latter for
            cascades, the former for the others.
        channels: width of the five maps and of the box heads' convolutions.
        fc_channels: width of the box heads' linear layers.
        mask_channels: width of the mask head; None for ``channels``.
        norm: a LayerNorm after every convolution of the heads.
        rpn_convs: convolutions before the proposals.
        box_convs: convolutions of a box head.
        box_fcs: linear layers of a box head.
        mask_convs: convolutions of a mask head.
        mask_per_stage: a mask head for every stage of a cascade, instead of one.
        anchor_scale: side of a square anchor over the stride of its map: 8 means 32 to 512 pixels.
        anchor_ratios: height over width of the anchors of a position.
        proposals: boxes that the first stage hands on.
        samples: of them, what the heads learn from, per image; up to a quarter are boxes that find an object.
        square: side of the square that every image is padded to; None pads to multiples of 32. An image that is larger
            is padded to the next larger square whose side is a multiple of 32.
        score_threshold: what is less probable is no detection.
        nms_threshold: IoU of two detections of a class above which the less probable one goes.
        detections: the most of an image.

    Raises:
        ConfigError: the backbone has other maps, or an option is unknown or out of range.
    """

    published_task = "detection"
    published_layout = "vision_ssm.checkpoints.detectors"

    def __init__(  # noqa: PLR0913 -- each is described above
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        kind: str = "mask",
        convention: str | None = None,
        channels: int = 256,
        fc_channels: int = 1024,
        mask_channels: int | None = None,
        norm: bool = False,
        rpn_convs: int = 1,
        box_convs: int = 0,
        box_fcs: int = 2,
        mask_convs: int = 4,
        mask_per_stage: bool = False,
        anchor_scale: float = 8.0,
        anchor_ratios: Sequence[float] = RATIOS,
        proposals: int = 1000,
        samples: int = 512,
        square: int | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        counts = {"num_classes": num_classes, "channels": channels, "fc_channels": fc_channels, "box_fcs": box_fcs}
        for option, value in {**counts, "proposals": proposals, "samples": samples, "detections": detections}.items():
            check_count(option, value)
        for option, value in {"rpn_convs": rpn_convs, "box_convs": box_convs, "mask_convs": mask_convs}.items():
            check_count(option, value, 0)
        for option, side in {"square": square, "mask_channels": mask_channels}.items():
            if side is not None:
                check_count(option, side)
        check_flags(norm=norm, mask_per_stage=mask_per_stage)
        check_rates(score_threshold=score_threshold, nms_threshold=nms_threshold)
        if anchor_scale <= 0 or not anchor_ratios or min(anchor_ratios) <= 0:
            raise ConfigError(f"anchors need a scale and ratios above 0, got {anchor_scale} and {anchor_ratios}")
        overlaps, with_masks = KINDS[kind]
        cascade = len(overlaps) > 1
        rules = convention_named(convention or ("detectron2" if cascade else "mmdet"))
        self.num_classes, self.kind, self.square = num_classes, kind, square
        self.backbone = backbone
        self.neck = _neck(backbone, channels)
        self.rpn = ProposalStage(
            channels, rules, depth=rpn_convs, scale=anchor_scale, ratios=anchor_ratios, proposals=proposals
        )
        box_heads = [
            BoxHead(
                channels,
                num_classes,
                convs=box_convs,
                fcs=box_fcs,
                fc_channels=fc_channels,
                norm=norm,
                class_agnostic=cascade,
            )
            for _ in overlaps
        ]
        mask_heads = [
            MaskHead(channels, num_classes, convs=mask_convs, channels=mask_channels or channels, norm=norm)
            for _ in range(0 if not with_masks else len(overlaps) if mask_per_stage else 1)
        ]
        self.stages = RegionStages(
            box_heads,
            mask_heads,
            num_classes,
            rules,
            overlaps=overlaps,
            weights=WEIGHTS[: len(overlaps)],
            samples=samples,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections=detections,
        )

    # ---------------------------------------------------------------------------------------------------- calling

    def forward(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> Any:
        """Detect, or in training mode give the losses.

        Args:
            images: a list of normalised images [C, H, W] of any sizes, or a batch of them [B, C, H, W].
            targets: in training, for each image its "boxes" [n, 4] (x1, y1, x2, y2 in its pixels), "labels" [n] (class
                indices from 0) and, if the model has masks, "masks" [n, H, W], bool. n may be 0.
            sizes: otherwise, the (H, W) in whose pixels results are wanted, where the image given is one that was
                resized; None for those of the image given. The deltas, overlaps and features are those of the image
                given either way, as published.

        Returns:
            a dictionary per image: "boxes" [N, 4], "labels" [N], "scores" [N], the best first, and, if the model has
            masks, "masks" [N, 1, H, W], bool. In training, a dictionary of losses.

        Each image is padded by itself, so that no result depends on what else is given. In training all are padded to
        the largest, as published. Detections that are nothing wide or high are left out.

        Raises:
            ShapeError: images or targets are not what is described above.
        """
        given = list(images)
        _check_images(given)
        if given[0].is_meta:
            return self._counted(given)
        if self.training:
            objects = _checked_targets(given, targets, self.num_classes, self.has_masks)
            return self._losses(given, objects)
        if targets is not None:
            raise ShapeError("targets are for training; call model.train() first, or leave them out")
        if sizes is not None and len(sizes) != len(given):
            raise ShapeError(f"expected a size (H, W) for each of {len(given)} images, got {len(sizes)}")
        wanted = [_size(x) for x in given] if sizes is None else [(int(h), int(w)) for h, w in sizes]
        results: list[dict[str, Tensor]] = [{} for _ in given]
        groups: dict[Size, list[int]] = {}
        for index, image in enumerate(given):
            groups.setdefault(self.padded_size(image), []).append(index)
        for size, group in groups.items():
            batch = _padded([given[index] for index in group], size)
            found = self._detect(batch, [_size(given[index]) for index in group], [wanted[index] for index in group])
            for index, result in zip(group, found, strict=True):
                results[index] = result
        return results

    def maps(self, batch: Tensor) -> list[Tensor]:
        """Return the maps [B, C, h, w] at strides 4 to 64 of padded images [B, C, H, W]."""
        # The residual stream of a column stays in float32 where weights and images are half.
        found = [x.to(batch.dtype) for x in maps_of(self.backbone, batch)]
        made: list[Tensor] = self.neck(found)
        return made

    @property
    def has_masks(self) -> bool:
        """Whether masks are predicted, and learned."""
        return bool(self.stages.mask_heads)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return int(getattr(self.inner, "in_chans", 3))

    @property
    def inner(self) -> nn.Module:
        """The backbone as timm has it without ``features_only``: published weights are for it."""
        body: Any = getattr(self.backbone, "body", self.backbone)
        found: nn.Module = getattr(body, "model", body)
        return found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping what is inside them."""
        backbone: Any = self.backbone
        backbone.set_grad_checkpointing(enable)

    # -------------------------------------------------------------------------------------------------- internals

    def _detect(self, batch: Tensor, sizes: Sequence[Size], wanted: Sequence[Size]) -> list[dict[str, Tensor]]:
        maps = self.maps(batch)
        proposals = [boxes for boxes, _ in self.rpn.propose(self.rpn(maps), sizes)]
        found = self.stages.detect(maps, proposals, sizes)
        grids: Sequence[Tensor | None] = [None] * len(found)
        if self.stages.mask_heads:
            grids = self.stages.masks(maps, [boxes for boxes, _, _ in found], [labels for _, labels, _ in found])
        return [
            finished(*of_image, grid, size, to)
            for of_image, grid, size, to in zip(found, grids, sizes, wanted, strict=True)
        ]

    def _losses(self, images: Sequence[Tensor], objects: Sequence[Objects]) -> dict[str, Tensor]:
        sizes, padded = [_size(x) for x in images], [self.padded_size(x) for x in images]
        batch = _padded(images, (max(height for height, _ in padded), max(width for _, width in padded)))
        maps = self.maps(batch)
        found = self.rpn(maps)
        of_logits, of_boxes = self.rpn.losses(found, [each.boxes for each in objects], padded)
        proposals = [boxes for boxes, _ in self.rpn.propose(found, sizes)]
        losses = {"loss_rpn_cls": of_logits, self.rpn.convention.rpn_box_loss: of_boxes}
        return losses | self.stages.losses(maps, proposals, objects, sizes)

    def _counted(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Do what takes the most that images without content (on the meta device) could: for counting what it costs."""
        stages = self.stages
        batch = _padded(images, self.padded_size(images[0]))
        maps = self.maps(batch)
        found = self.rpn(maps)
        many = stages.samples if self.training else self.rpn.proposals
        few = int(stages.samples * stages.share) if self.training else stages.detections
        results = [*found.logits, *found.deltas]
        for stage in range(len(stages.box_heads)):
            results += stages.run(stage, maps, [batch.new_empty(many, 4) for _ in images])
        for head in stages.mask_heads:
            boxes = [batch.new_empty(few, 4) for _ in images]
            results.append(head(region_features(maps, boxes, MASK_SIDE, stages.convention)))
            if not self.training:
                results += [x.new_empty(few, 1, *_size(x), dtype=torch.bool) for x in images]
        return results

    def padded_size(self, image: Tensor) -> Size:
        """Return the (H, W) that an image [C, h, w] is padded to."""
        height, width = (-(-side // DIVISOR) * DIVISOR for side in image.shape[1:])
        if self.square is None:
            return height, width
        side = max(height, width) if max(image.shape[1:]) > self.square else self.square
        return side, side


def finished(
    boxes: Tensor, labels: Tensor, scores: Tensor, grids: Tensor | None, size: Size, to: Size
) -> dict[str, Tensor]:
    """Return what was found on an image as `Detector.forward` returns it.

    Args:
        boxes: [N, 4].
        labels: [N].
        scores: [N].
        grids: probabilities [N, s, s] within the boxes, if there are masks.
        size: (H, W) of the image that the boxes are of.
        to: (H, W) in whose pixels the results are wanted.
    """
    moved = rescaled(boxes, size, to)
    kept = has_area(moved)
    result = {"boxes": moved[kept], "labels": labels[kept], "scores": scores[kept]}
    if grids is not None:
        result["masks"] = pasted(grids[kept], moved[kept], to)
    return result


def _neck(backbone: nn.Module, channels: int) -> nn.Module:
    infos: Any = backbone.feature_info
    reductions, widths = tuple(infos.reduction()), list(infos.channels())
    if reductions == REDUCTIONS:
        return FPN(widths, channels)
    if len(reductions) == 1:
        return SimplePyramid(widths[0], reductions[0], channels)
    raise ConfigError(
        f"detection needs a backbone with maps at strides {', '.join(map(str, REDUCTIONS))}, or with one map, got "
        f"{', '.join(map(str, reductions))}.{other_patches(reductions)}"
    )


def _size(image: Tensor) -> Size:
    return image.shape[1], image.shape[2]


def _padded(images: Sequence[Tensor], size: Size) -> Tensor:
    """Images in one batch, zeros below and to the right: the mean colour of a normalised image."""
    height, width = size
    return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])


def _check_images(images: Sequence[Tensor]) -> None:
    if not images:
        raise ShapeError("expected at least one image, got none")
    for image in images:
        if image.dim() != 3 or min(image.shape) < 1 or not image.is_floating_point():
            raise ShapeError(
                f"expected normalised images [C, H, W] of at least one pixel, got {list(image.shape)} of {image.dtype}"
            )


def _checked_targets(
    images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None, classes: int, masks: bool
) -> list[Objects]:
    if targets is None or len(targets) != len(images):
        raise ShapeError(
            f"training needs targets for each of {len(images)} images, got {0 if targets is None else len(targets)}; "
            "call model.eval() to detect"
        )
    found = []
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        boxes = target["boxes"].to(image.device, torch.float32).reshape(-1, 4)
        labels = target["labels"].to(image.device, torch.long)
        of_objects = target.get("masks") if masks else None
        if len(labels) != len(boxes) or not bool(has_area(boxes).all()):
            raise ShapeError(
                f"target {index}: expected boxes [n, 4] (x1, y1, x2, y2) with x1 < x2 and y1 < y2, and n labels; got "
                f"{len(boxes)} boxes, {int((~has_area(boxes)).sum())} of them empty or not finite, and {len(labels)} "
                "labels"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ShapeError(
                f"target {index}: labels must be 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}"
            )
        if masks and (of_objects is None or of_objects.shape != (len(boxes), *_size(image))):
            shape = None if of_objects is None else list(of_objects.shape)
            raise ShapeError(
                f"target {index}: this model has masks, so it needs masks {[len(boxes), *_size(image)]} to learn from, "
                f"got {shape}; kind='faster' or 'cascade' needs none"
            )
        found.append(Objects(boxes, labels, None if of_objects is None else of_objects.to(image.device)))
    return found
