"""A model outside this library: what a task hands out of its model, and what takes the model's place afterwards.

A file that another runtime executes has named outputs. The first of them decides: along its second axis it holds a
number per class, [B, classes, ...], and the largest is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError

__all__ = ["Form", "Run", "StandIn"]

Run = Callable[[Tensor], dict[str, Tensor]]
"""From images float32 [B, C, H, W] to the outputs of an exported file, by name."""


class Form(NamedTuple):
    """What is exported of a model.

    Attributes:
        module: from images [B, C, H, W] to a tuple of tensors, each with the batch first.
        outputs: their names.
        any_size: whether height and width may be left open; False where the module is bound to one size.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    any_size: bool = True


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
