"""Denoisers that know the answer, and images to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vision_ssm.tasks.generation.process import process
from vision_ssm.training.config import TrainConfig

CLASSES = ("dark", "light")


class Oracle(nn.Module):
    """Knows that the image of class y is all of the value ``levels[y]``, and says the noise that this leaves."""

    learn_sigma = True

    def __init__(self, levels: tuple[float, ...] = (-0.5, 0.5), channels: int = 3) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor((*levels, 0.0)))  # of no class: grey
        self.in_chans, self.num_classes, self.img_size, self.calls = channels, len(levels), 8, 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        at = process().at(t)
        noise = (x - at.signal * self.levels[y].view(-1, 1, 1, 1)) / at.noise
        return torch.cat([noise, -torch.ones_like(noise)], 1)


def write_images(folder: Path, count: int = 10) -> Path:
    """Two classes of 8x8 noise around two grey levels."""
    numbers = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = numbers.normal(64 + 128 * label, 10, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def tiny(images: Path, output: Path, **overrides: Any) -> TrainConfig:
    """A run that takes a moment."""
    values = {
        "task": "generation",
        "model.name": "dig_nano",
        "model.img_size": 8,
        "model.options": {"embed_dim": 16, "depth": 2, "head_dim": 16},
        "data.path": str(images),
        "data.batch_size": 4,
        "data.workers": 0,
        "schedule.epochs": 2,
        "ema.decay": 0.9,
        "run.output": str(output),
        "run.name": "run",
        "run.device": "cpu",
        "run.log_every": 1,
    }
    return TrainConfig.load(None, values | overrides)
