"""The first stage: at every position of five maps, which anchors hold something, and how they are moved onto it.

    H = ReLU(conv(... ReLU(conv(P)) ...))                         3 x 3, shared by all maps
    logits = W_c H,  deltas = W_d H                               1 x 1, a logit and four deltas per anchor

Source: Faster R-CNN, arXiv:1506.01497; the numbers are those of both published conventions (`conventions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from vision_ssm.layers.detection.anchors import RATIOS, anchor_boxes, cells_inside
from vision_ssm.layers.detection.boxes import apply_deltas, clipped, deltas_between, has_area
from vision_ssm.layers.detection.conventions import Convention
from vision_ssm.layers.detection.matching import Matches, match, sample
from vision_ssm.layers.detection.necks import STRIDES, convolution

__all__ = ["Found", "ProposalStage"]

UNWEIGHTED = (1.0, 1.0, 1.0, 1.0)


class Found(NamedTuple):
    """What the first stage found on a batch, with the maps in order, finest first.

    Attributes:
        logits: per map [B, A].
        deltas: per map [B, A, 4].
        anchors: per map [A, 4].
        grids: (h, w) of each map.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    grids: list[tuple[int, int]]


class ProposalStage(nn.Module):
    """The first stage of a detector.

    Args:
        channels: of the maps and inside.
        convention: see `conventions.py`.
        depth: convolutions before the logits.
        scale: side of the square anchor of a map, over the map's stride.
        ratios: of height to width.
        proposals: how many an image keeps; from each map come at most as many, in training twice as many.
    """

    overlap = 0.7  # of two proposals of one map: the lower one goes
    below, above = 0.3, 0.7  # IoU of anchors that are to find nothing, and something
    samples, share = 256, 0.5

    def __init__(
        self,
        channels: int,
        convention: Convention,
        *,
        depth: int = 1,
        scale: float = 8.0,
        ratios: Sequence[float] = RATIOS,
        proposals: int = 1000,
    ) -> None:
        super().__init__()
        self.convention, self.scale, self.ratios, self.proposals = convention, scale, tuple(ratios), proposals
        self.convs = nn.ModuleList(convolution(channels, channels, 3) for _ in range(depth))
        self.logits = nn.Conv2d(channels, len(self.ratios), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(self.ratios), 1)
        for module in (*self.convs, self.logits, self.deltas):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> Found:
        """Find what there may be on maps [B, C, h, w] of strides 4 to 64."""
        logits, deltas = [], []
        for each in maps:
            x = each
            for conv in self.convs:
                x = F.relu(conv(x))
            logits.append(self.logits(x).float().permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).float().permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        grids = [(x.shape[2], x.shape[3]) for x in maps]
        anchors = anchor_boxes(grids, STRIDES, scale=self.scale, ratios=self.ratios, device=maps[0].device)
        return Found(logits, deltas, anchors, grids)

    @torch.no_grad()
    def propose(self, found: Found, sizes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """Return for each image the boxes [N, 4] that are proposed, the best first, and what they are ranked by [N].

        ``sizes`` (H, W) are those of the images before they were padded.
        """
        proposed = []
        from_each = self.proposals * (2 if self.training else 1)
        for image, size in enumerate(sizes):
            boxes, scores, levels = [], [], []
            for level, (logits, deltas, anchors) in enumerate(
                zip(found.logits, found.deltas, found.anchors, strict=True)
            ):
                rank = logits[image].sigmoid() if self.convention.rank_by_probability else logits[image]
                value, index = rank.sort(descending=True, stable=True)
                value, index = value[:from_each], index[:from_each]
                boxes.append(clipped(self._moved(deltas[image, index], anchors[index]), size))
                scores.append(value)
                levels.append(torch.full_like(index, level))
            all_boxes, all_scores, all_levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
            kept = torch.where(has_area(all_boxes))[0]
            all_boxes, all_scores = all_boxes[kept], all_scores[kept]
            kept = batched_nms(all_boxes, all_scores, all_levels[kept], self.overlap)[: self.proposals]
            proposed.append((all_boxes[kept], all_scores[kept]))
        return proposed

    def losses(
        self, found: Found, objects: Sequence[Tensor], padded: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of the logits and of the deltas.

        Args:
            found: what :meth:`forward` returned.
            objects: boxes [G, 4] of each image.
            padded: (H, W) of each image, padded by itself.
        """
        anchors = torch.cat(found.anchors)
        logits, deltas = torch.cat(found.logits, dim=1), torch.cat(found.deltas, dim=1)
        entropy, distance, sampled = logits.sum() * 0, deltas.sum() * 0, 0
        for image, boxes in enumerate(objects):
            matches = self.matched(found, boxes, padded[image])
            positive, negative = sample(matches.kinds, self.samples, self.share)
            chosen = torch.cat([positive, negative])
            truth = torch.zeros_like(chosen, dtype=logits.dtype)
            truth[: len(positive)] = 1
            entropy = entropy + F.binary_cross_entropy_with_logits(logits[image, chosen], truth, reduction="sum")
            if len(positive):
                aims = deltas_between(anchors[positive], boxes[matches.objects[positive]], UNWEIGHTED)
                distance = distance + (deltas[image, positive] - aims).abs().sum()
            sampled += len(chosen)
        count = max(sampled, 1) if self.convention.divide_by_sampled else self.samples * len(objects)
        return entropy / count, distance / count

    def matched(self, found: Found, boxes: Tensor, padded: tuple[int, int]) -> Matches:
        """Match the anchors of all maps with the objects [G, 4] of an image of that padded size."""
        matches = match(
            torch.cat(found.anchors),
            boxes,
            below=self.below,
            above=self.above,
            least_best=self.convention.least_best,
            best_takes_over=self.convention.best_takes_over,
        )
        if not self.convention.anchors_in_padding:
            inside = cells_inside(found.grids, STRIDES, padded, len(self.ratios), boxes.device)
            matches.kinds[~inside] = -1
        return matches

    def _moved(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        bounded = self.convention.deltas_bounded_below
        return apply_deltas(deltas[:, None], boxes, UNWEIGHTED, bounded_below=bounded)[:, 0]
