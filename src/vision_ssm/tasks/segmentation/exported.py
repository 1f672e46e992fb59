"""A segmentor outside this library: a number per class at every fourth pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from vision_ssm.models.segmentor import Segmentor
from vision_ssm.tasks.exported import Form, Run, StandIn

__all__ = ["ExportedSegmentor", "segmentor_form"]

LOGITS = "logits"


def segmentor_form(model: Segmentor) -> Form:
    """Return what is exported of a segmentor: logits [B, classes, h, w] at stride 4, which are yet to be enlarged."""
    return Form(_Decoded(model), (LOGITS,), any_size=False)  # its head pools to grids of fixed numbers of cells


class _Decoded(nn.Module):
    def __init__(self, model: Segmentor) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model.decode_head(self.model.maps(images, (int(images.shape[2]), int(images.shape[3])))),)


class _Logits(NamedTuple):
    """What stands for the maps that a decode head has merged: the logits themselves."""

    finest: Tensor


class _Rows:
    """Takes the place of a decode head whose work the file has done."""

    joined_channels = 1  # nothing is left to be decoded

    def merge(self, maps: Sequence[Tensor]) -> _Logits:
        return _Logits(maps[0])

    def rows(self, merged: _Logits, start: int, stop: int) -> Tensor:
        return merged.finest[:, :, start:stop]

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[0]


class ExportedSegmentor(StandIn):
    """Takes the place of a segmentor.

    Args:
        run: of the file.
        num_classes: of the logits.
    """

    def __init__(self, run: Run, num_classes: int) -> None:
        super().__init__(run)
        self.num_classes = num_classes
        self.decode_head = _Rows()

    @property
    def inner(self) -> StandIn:
        """There is no backbone apart."""
        return self

    def maps(self, images: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Return the logits [B, classes, h, w] at stride 4, in the place of the maps that they come from."""
        return [self.outputs(images)[LOGITS]]
