"""COCO's scores of boxes and masks, by faster-coco-eval, whose figures equal those of pycocotools."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_ssm.errors import ConfigError
from vision_ssm.tasks.detection.things import Outline

__all__ = ["FIGURES", "CocoScores", "Seen", "coco_scores", "require_scorer"]

FIGURES = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium",
    "ap_large": "AP large", "ar1": "AR of 1", "ar10": "AR of 10", "ar": "AR", "ar_small": "AR small",
    "ar_medium": "AR medium", "ar_large": "AR large",
}  # fmt: skip
"""COCO's twelve, in its order. Small is below 32 x 32 pixels, large above 96 x 96."""

_SIZES = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class Seen:
    """One evaluated image: what is on it, and what was found.

    Attributes:
        size: (height, width).
        boxes: annotated, [N, 4], left, top, right, bottom.
        labels: [N].
        crowd: [N].
        areas: [N], in pixels.
        outlines: of each, or None.
        found: boxes [M, 4], the best first.
        found_labels: [M].
        scores: [M].
        masks: packed run lengths of each find; None where the model has no masks.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    outlines: Sequence[Outline | None]
    found: NDArray[np.float32]
    found_labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: Sequence[str] | None


@dataclass(frozen=True)
class CocoScores:
    """Scores of boxes, or of masks.

    Attributes:
        figures: the twelve of `FIGURES` in [0, 1]; nan where there is nothing to score.
        per_class: AP, AP50 and AR of each class, [classes, 3]; nan for classes that are not annotated.
        precision: at each IoU of `overlaps` and each recall of `recalls`, [T, R, classes]; -1 for those classes.
        overlaps: IoU thresholds [T].
        recalls: [R].
    """

    figures: dict[str, float]
    per_class: NDArray[np.float64]
    precision: NDArray[np.float64]
    overlaps: NDArray[np.float64]
    recalls: NDArray[np.float64]


def require_scorer() -> None:
    """Raise ConfigError, saying what to install, unless faster-coco-eval is there."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise ConfigError(
            "COCO's scores need the package faster-coco-eval: pip install 'vision-ssm[detection]'. Predictions do not."
        )


def coco_scores(seen: Mapping[int, Seen], classes: int, *, masks: bool = False, most: int = 100) -> CocoScores:
    """Score what was found.

    Args:
        seen: images by number.
        classes: how many there are.
        masks: score masks instead of boxes.
        most: finds of an image that count, the best ones; COCO's 100.

    Raises:
        ConfigError: faster-coco-eval is not installed.
    """
    require_scorer()
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(_truth(seen, classes, masks))
    found = truth.loadRes(_finds(seen, masks))
    evaluation = COCOeval_faster(truth, found, "segm" if masks else "bbox", rle_iou_max_workers=1)
    evaluation.params.maxDets = [1, 10, max(most, 11)]
    if seen:
        evaluation.evaluate()
        evaluation.accumulate()
    shape = len(evaluation.params.iouThrs), len(evaluation.params.recThrs), classes, len(_SIZES), 3
    nothing = {"precision": np.full(shape, -1.0), "recall": np.full((shape[0], *shape[2:]), -1.0)}
    arrays = evaluation.eval if seen else nothing
    precision = np.asarray(arrays["precision"], np.float64).reshape(shape)
    recall = np.asarray(arrays["recall"], np.float64).reshape(shape[0], *shape[2:])
    overlaps = np.asarray(evaluation.params.iouThrs)
    whole, half = precision[..., 0, 2], precision[:1, :, :, 0, 2]
    values = [
        *(_mean(part) for part in (whole, half, precision[5:6, :, :, 0, 2])),
        *(_mean(precision[..., size, 2]) for size in (1, 2, 3)),
        *(_mean(recall[..., 0, limit]) for limit in range(3)),
        *(_mean(recall[..., size, 2]) for size in (1, 2, 3)),
    ]
    per_class = [[_mean(part[..., label]) for part in (whole, half, recall[..., 0, 2])] for label in range(classes)]
    return CocoScores(
        dict(zip(FIGURES, values, strict=True)),
        np.array(per_class).reshape(-1, 3),
        whole,
        overlaps,
        np.asarray(evaluation.params.recThrs),
    )


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def _truth(seen: Mapping[int, Seen], classes: int, masks: bool) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in sorted(seen.items()):
        images.append({"id": number + 1, "height": image.size[0], "width": image.size[1]})
        for index, (left, top, right, bottom) in enumerate(image.boxes.tolist()):
            entry = {
                "id": len(annotations) + 1,
                "image_id": number + 1,
                "category_id": int(image.labels[index]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": float(image.areas[index]),
                "iscrowd": int(image.crowd[index]),
            }
            if masks:
                entry["segmentation"] = _segmentation(image.outlines[index], image.boxes[index])
            annotations.append(entry)
    categories = [{"id": label + 1, "name": str(label)} for label in range(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _segmentation(outline: Outline | None, box: NDArray[np.float64]) -> Any:
    if outline is None:  # a crowd may have a box alone
        left, top, right, bottom = box.tolist()
        return [[left, top, right, top, right, bottom, left, bottom]]
    return dict(outline) if isinstance(outline, Mapping) else [list(polygon) for polygon in outline]


def _finds(seen: Mapping[int, Seen], masks: bool) -> list[dict[str, Any]]:
    listed = []
    for number, image in sorted(seen.items()):
        for index, (left, top, right, bottom) in enumerate(image.found.astype(np.float64).tolist()):
            entry: dict[str, Any] = {
                "image_id": number + 1,
                "category_id": int(image.found_labels[index]) + 1,
                "score": float(image.scores[index]),
            }
            if not masks:
                entry["bbox"] = [left, top, right - left, bottom - top]
            elif image.masks is not None:
                entry["segmentation"] = {"size": list(image.size), "counts": image.masks[index]}
            listed.append(entry)
    return listed
