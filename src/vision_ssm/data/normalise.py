"""From pixels to the numbers that a model takes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_ssm.data.preprocessing import Preprocessing

__all__ = ["Normalise"]


class Normalise:
    """Pixels [H, W, C] -> normalised float32 [C, H, W]; of pictures the same numbers as timm's to within rounding."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.mean = preprocessing.unit * torch.tensor(preprocessing.mean).view(-1, 1, 1)
        self.scale = 1 / (preprocessing.unit * torch.tensor(preprocessing.std).view(-1, 1, 1))

    def __call__(self, pixels: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
        """Convert all pixels, or a strip of them."""
        planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # torch shares no memory that is only to be read
        return planes.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).mul_(self.scale)
