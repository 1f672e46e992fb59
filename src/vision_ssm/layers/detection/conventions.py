"""What published detectors do differently although they bear the same name, as named choices.

`MMDET` is what VMamba's and EfficientVMamba's detectors were trained with (open-mmlab/mmdetection 3.3.0), `DETECTRON2`
what Vim's were (the copy of facebookresearch/detectron2 in hustvl/Vim at dd0358a). All else is common to both:
deltas relative to width and height and logarithmic, half-pixel RoIAlign with as many samples as a bin has pixels,
anchors at the corners of cells and not rounded, L1 on boxes, the background as the last class.
"""

from __future__ import annotations

from dataclasses import dataclass

from vision_ssm.layers.options import check_choice

__all__ = ["CONVENTIONS", "DETECTRON2", "MMDET", "Convention", "convention_named"]


@dataclass(frozen=True)
class Convention:
    """One set of choices.

    Attributes:
        name: of the convention.
        deltas_bounded_below: the logarithmic deltas are bounded on both sides, not from above alone.
        rank_by_probability: proposals are ranked by sigmoid(logit), which may tie where logits do not.
        level_side: side of a box of the level ``level_of_side``.
        level_of_side: counted from the finest, see `vision_ssm.layers.detection.regions.levels_of`.
        level_epsilon: added to side / ``level_side`` before the logarithm.
        anchors_in_padding: anchors of an image's padding to that of its batch take part in training, as negatives.
        best_takes_over: in training, the anchors that fit an object best become that object's, even if they fit
            another one better; otherwise they become positive and stay with the one that they fit best.
        least_best: IoU below which an object's best anchors are left as they are.
        least_best_region: the same rule for proposals, with this least IoU; None for no such rule.
        divide_by_sampled: the losses of proposals are divided by the number of sampled anchors; otherwise by the most
            that there may be.
        objects_first: in training the objects themselves stand before the proposals, each matched with itself;
            otherwise behind them, matched as they are.
        rpn_box_loss: name of the loss of the proposals' boxes.
        box_loss: name of the loss of the regions' boxes.
    """

    name: str
    deltas_bounded_below: bool
    rank_by_probability: bool
    level_side: float
    level_of_side: int
    level_epsilon: float
    anchors_in_padding: bool
    best_takes_over: bool
    least_best: float
    least_best_region: float | None
    divide_by_sampled: bool
    objects_first: bool
    rpn_box_loss: str
    box_loss: str


MMDET = Convention(
    name="mmdet",
    deltas_bounded_below=True,
    rank_by_probability=True,
    level_side=56.0,
    level_of_side=0,
    level_epsilon=1e-6,
    anchors_in_padding=False,
    best_takes_over=True,
    least_best=0.3,
    least_best_region=0.5,
    divide_by_sampled=True,
    objects_first=True,
    rpn_box_loss="loss_rpn_bbox",
    box_loss="loss_bbox",
)
DETECTRON2 = Convention(
    name="detectron2",
    deltas_bounded_below=False,
    rank_by_probability=False,
    level_side=224.0,
    level_of_side=2,
    level_epsilon=1e-8,
    anchors_in_padding=True,
    best_takes_over=False,
    least_best=0.0,
    least_best_region=None,
    divide_by_sampled=False,
    objects_first=False,
    rpn_box_loss="loss_rpn_loc",
    box_loss="loss_box_reg",
)
CONVENTIONS = {convention.name: convention for convention in (MMDET, DETECTRON2)}


def convention_named(name: str) -> Convention:
    """Return the convention of that name; raise ConfigError, with the nearest name, if there is none."""
    check_choice("convention", name, CONVENTIONS)
    return CONVENTIONS[name]
