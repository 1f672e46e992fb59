"""Classify image files, folders of them, or images in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.errors import ConfigError
from vision_ssm.inference.inputs import Failure, ImageLike, ImageSize, ModelInput, find_images, prepare_images
from vision_ssm.storage import whole_file
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.opening import autocast, open_model

__all__ = ["Failure", "ImageLike", "Prediction", "Predictions", "predict"]


@dataclass(frozen=True)
class Prediction:
    """The classes found for one image, most probable first: (class name, probability in [0, 1])."""

    path: str
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predictions:
    """What `predict` returns: ``results`` in the order asked for, and ``failures``."""

    results: tuple[Prediction, ...]
    failures: tuple[Failure, ...]

    def write(self, path: str | Path) -> None:
        """Write to a .json or .csv file, whole or not at all.

        JSON: ``{"results": [{"path", "classes": [{"class", "probability"}]}], "failures": [{"path", "reason"}]}``.
        CSV: one row per image and rank, with columns path, rank, class, probability, error.

        Raises:
            ConfigError: another suffix; DataError: the file cannot be written.
        """
        path = Path(path)
        writers = {".json": self._write_json, ".csv": self._write_csv}
        writer = writers.get(path.suffix.lower())
        if writer is None:
            raise ConfigError(f"predictions are written to .json or .csv files, got {str(path)!r}.")
        with whole_file(path) as part:
            writer(part)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file as plain values."""
        results = [
            {"path": result.path, "classes": [{"class": name, "probability": p} for name, p in result.classes]}
            for result in self.results
        ]
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        return {"results": results, "failures": failures}

    def _write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        # File names need not be valid text; this writes their bytes back as they were.
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(["path", "rank", "class", "probability", "error"])
            for result in self.results:
                for rank, (name, probability) in enumerate(result.classes, start=1):
                    table.writerow([result.path, rank, name, f"{probability:.6f}", ""])
            for failure in self.failures:
                table.writerow([failure.path, "", "", "", failure.reason])


def predict(
    weights: str | Path | Loaded | None = None,
    images: ImageLike | Iterable[ImageLike] = (),
    *,
    top_k: int = 5,
    batch_size: int = 16,
    img_size: ImageSize = None,
    device: str | torch.device | None = None,
    amp: str = "none",
    model: str | None = None,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Classify images. Files that cannot be read do not stop the others; they are listed in ``failures``.

    Args:
        weights: a weights file, the name of one that ships with the package, a loaded model
            (`vision_ssm.weights.opening.open_model`), or with ``model`` a checkpoint without description, such as
            the published ones. None takes the shipped model of ten everyday classes:
            ``predict(images=["cat.jpg"])``; ``vision_ssm.load_model().info`` tells what it knows.
        images: one image or several, see `ImageLike`.
        top_k: number of classes to report per image; all of them if the model has fewer.
        batch_size: images per run of the model.
        img_size: side, or (height, width), to resize to instead of the size of training; ``native`` for every image
            at its own size, one by one, embedded in strips as it is read (docs/large_images.md).
        device: None takes a GPU if there is one, else the CPU.
        amp: ``none``, ``bf16`` or ``fp16`` autocast.
        model: registered name of the model that a checkpoint belongs to.
        max_pixels: see `vision_ssm.data.images.read_image`.
        on_progress: called with (images done, images in all).

    Raises:
        DataError: no image at all; ConfigError: an option is out of range; CheckpointError: unusable weights;
        ShapeError: ``img_size`` is too small for the model; with ``native`` that is a failure of the image.
    """
    if batch_size < 1 or top_k < 1:
        raise ConfigError(f"batch_size and top_k must be at least 1, got {batch_size} and {top_k}.")
    failures: list[Failure] = []
    found = find_images(images, failures)
    loaded = open_model(weights, model=model, device=device)
    batches = prepare_images(
        found,
        loaded,
        failures,
        batch_size=batch_size,
        img_size=img_size,
        amp=amp,
        max_pixels=max_pixels,
        on_progress=on_progress,
    )
    results: list[Prediction] = []
    for names, inputs in batches:
        probabilities = _probabilities(loaded.model, inputs, amp)
        for name, row in zip(names, probabilities, strict=True):
            if row.isfinite().all():
                results.append(_prediction(name, row, loaded.info.class_names, top_k))
            else:
                failures.append(Failure(name, "the model's output is not finite"))
    return Predictions(tuple(results), tuple(failures))


@torch.inference_mode()
def _probabilities(model: nn.Module, images: ModelInput, amp: str) -> Tensor:
    device = next(model.parameters()).device
    with autocast(device, amp):
        logits: Tensor = model(images)
    return logits.float().softmax(dim=1).cpu()


def _prediction(name: str, probabilities: Tensor, class_names: tuple[str, ...], top_k: int) -> Prediction:
    top = probabilities.topk(min(top_k, len(probabilities)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Prediction(name, tuple((class_names[index], probability) for index, probability in pairs))
