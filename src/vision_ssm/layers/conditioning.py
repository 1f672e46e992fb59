"""What a denoiser is told beside the image, a timestep and a class, and how its layers take it.

    E_t = W_2 SiLU(W_1 [cos(t ω), sin(t ω)])                     ω_j = 10000^(-j / 128), j < 128
    E_y = table[y]                                               in training now and then that of no class
    modulate(x, shift, scale) = (1 + scale) ⊙ LN(x) + shift      LN without weights; shift and scale per image

Source: DiT, arXiv:2212.09748, section 3.2, and its code (facebookresearch/DiT, models.py), which DiG keeps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ClassEmbed", "ModulatedOutput", "TimestepEmbed", "modulate"]

EPS = 1e-6
FREQUENCIES = 128
LONGEST = 10000.0


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise x [B, H, W, D] over its channels, then scale by 1 + ``scale`` and shift, both [B, D]."""
    normalised = F.layer_norm(x, x.shape[-1:], eps=EPS)
    return normalised * (1 + scale[:, None, None]) + shift[:, None, None]


class TimestepEmbed(nn.Module):
    """Timesteps to vectors: sinusoids of 128 frequencies, then two layers.

    Args:
        channels: D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * FREQUENCIES, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps t [B], whole or not; returns [B, D]."""
        # In float32 whatever the weights' dtype, as published: the last digits of 999 ω are seen in the result.
        exponents = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float32)
        angles = t.float()[:, None] * torch.exp(-math.log(LONGEST) * exponents / FREQUENCIES)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.fc1.weight.dtype)
        result: Tensor = self.fc2(F.silu(self.fc1(waves)))
        return result


class ClassEmbed(nn.Module):
    """Classes to vectors, with one more row for no class.

    Args:
        num_classes: the row of no class is the one after them.
        channels: D.
        dropout: in training, the probability with which a label is taken for no class.
    """

    def __init__(self, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.num_classes, self.dropout = num_classes, dropout
        self.table = nn.Embedding(num_classes + 1, channels)

    def forward(self, y: Tensor, drop: Tensor | None = None) -> Tensor:
        """Embed labels y [B], ``num_classes`` for none; returns [B, D].

        Args:
            y: whole numbers.
            drop: [B], which labels to take for no class; None draws them in training, and drops none otherwise.
        """
        if drop is None and self.training and self.dropout > 0:
            drop = torch.rand(y.shape, device=y.device) < self.dropout
        if drop is not None:
            y = torch.where(drop, self.num_classes, y)
        embedded: Tensor = self.table(y)
        return embedded


class ModulatedOutput(nn.Module):
    """The last layer: a modulated norm, then a projection.

    Args:
        channels: D.
        outputs: of each token.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(channels, 2 * channels)
        self.linear = nn.Linear(channels, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Project a map x [B, H, W, D] to [B, H, W, outputs], told ``condition`` [B, D]."""
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        result: Tensor = self.linear(modulate(x, shift, scale))
        return result
