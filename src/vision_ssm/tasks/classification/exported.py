"""A classifier outside this library: a number per class, and the vector that they come from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vision_ssm.tasks.exported import Form, StandIn

__all__ = ["ExportedClassifier", "classifier_form"]

LOGITS, EMBEDDING = "logits", "embedding"


def classifier_form(model: nn.Module) -> Form:
    """Return what is exported of a classifier: logits [B, classes] and the vector [B, D] that the head reads."""
    return Form(_Classified(model), (LOGITS, EMBEDDING))


class _Classified(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model.forward_features(images)
        return self.model.forward_head(found), self.model.forward_head(found, pre_logits=True)


class ExportedClassifier(StandIn):
    """Takes the place of a classifier, for its classes and its vectors. It has no maps of layers."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W]."""
        return self.outputs(images)[LOGITS]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the vectors [B, D], which are pooled already."""
        return self.outputs(images)[EMBEDDING]

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Return the vectors as they are."""
        if not pre_logits:
            raise TypeError("an exported classifier gives its logits when it is called")
        return features
