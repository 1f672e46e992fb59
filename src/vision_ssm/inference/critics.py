"""Trained weights that an evaluation asks about images, beside those that it scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vision_ssm.data.batches import Sample
from vision_ssm.errors import ConfigError
from vision_ssm.inference.features import embedding
from vision_ssm.tasks.meter import Critic
from vision_ssm.weights.files import Loaded, require_command
from vision_ssm.weights.opening import open_model
from vision_ssm.weights.shipped import called

__all__ = ["LoadedCritic", "critic_opener"]


class LoadedCritic:
    """A loaded model as a `vision_ssm.tasks.meter.Critic`.

    Args:
        loaded: of any task for features; of one that tells one class per image for classes.

    Raises:
        CheckpointError: weights of this task give no features.
    """

    def __init__(self, loaded: Loaded) -> None:
        require_command(loaded.info, "features")
        self._model, self._task = loaded.model, loaded.task()
        self._prepare = self._task.transform(loaded.info.preprocessing, train=False)
        self.source, self.class_names = called(loaded.info.source), loaded.info.class_names

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """The vectors that the classifier would read, [n, D] float32 on the CPU."""
        batch = self._batch(images)
        return embedding(self._task.backbone(self._model), batch.images).float().cpu()

    @torch.inference_mode()
    def classes(self, images: Sequence[Image.Image]) -> list[int]:
        """The most probable class of each. Raises ConfigError where the model does not tell one class per image."""
        found = self._task.predict(self._model, self._batch(images))
        if not isinstance(found, Tensor) or found.shape != (len(images), len(self.class_names)):
            raise ConfigError(f"{self.source} tells more than a class per image; ask weights that tell just that.")
        return list(found.argmax(1).tolist())

    def _batch(self, images: Sequence[Image.Image]) -> Any:
        samples = [
            Sample(self._prepare(image, None)[0], None, (image.height, image.width), row)
            for row, image in enumerate(images)
        ]
        return self._task.collate(samples).to(next(self._model.parameters()).device)


def critic_opener(device: torch.device) -> Callable[[str | None], Critic]:
    """Return what opens weights, by file or name, on ``device``; None opens those that ship with the package."""
    return lambda weights: LoadedCritic(open_model(weights, device=device))
