"""A model outside this library: what a task hands out of its model, and what takes the model's place afterwards.

A file that another runtime executes has named outputs. The first of them decides: along its second axis it holds a
number per class, [B, classes, ...], and the largest is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError

__all__ = ["Form", "Run", "StandIn"]


class Run(Protocol):
    """What executes an exported file."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images that it takes; None where any will do."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs for images float32 [B, C, H, W], by name."""


Compare = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[float, int, int]]
"""From the outputs of a file and of its model to the error, and how many answers are the same, of how many."""


class Form(NamedTuple):
    """What is exported of a model.

    Attributes:
        module: from images [B, C, H, W] to a tuple of tensors, each with the batch first.
        outputs: their names.
        any_size: whether height and width may be left open; False where the module is bound to one size.
        any_batch: whether the number of images may be left open; False where it takes them one by one.
        of_torch: whether torch's own operators are enough for it, beside the scans.
        compare: how outputs are compared; None for the largest difference over the largest value of each.
        compare_int8: how those of a file whose products are in whole numbers are; None for as others.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    any_size: bool = True
    any_batch: bool = True
    of_torch: bool = True
    compare: Compare | None = None
    compare_int8: Compare | None = None


class StandIn(nn.Module):
    """What prediction calls in the place of a model that was exported. It has no weights.

    Args:
        run: of the file.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        # Says where images are to be put, as the weights of a model do.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """Refuse: a task whose files hold vectors of images says otherwise. Raises ConfigError."""
        raise ConfigError("this exported file holds no vectors of images; take the weights that it came from.")

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Run the file on images [B, C, H, W].

        Raises:
            ConfigError: within autocast, which the file would escape; ShapeError: not plain images, or of a size that
                it does not take.
        """
        if torch.is_autocast_enabled("cpu"):
            raise ConfigError(
                "an exported model runs in the precision that it was exported in: leave mixed precision (amp) out."
            )
        if not isinstance(images, Tensor):
            raise ShapeError("an exported model takes whole images, not embedded strips of them")
        return self.run(images.detach().float().contiguous())
