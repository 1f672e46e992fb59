"""Feature vectors and maps of image files, folders of them, or images in memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.device import autocast
from vision_ssm.errors import ConfigError
from vision_ssm.inference.inputs import (
    Failure,
    ImageLike,
    ImageSize,
    ModelInput,
    Named,
    find_images,
    of_one_image,
    prepare_images,
)
from vision_ssm.inference.naming import free_name
from vision_ssm.storage import require_writable, whole_file
from vision_ssm.weights.files import Loaded, require_command
from vision_ssm.weights.opening import open_model

__all__ = ["INDEX", "Feature", "Features", "embedding", "features"]

INDEX = "index.json"
"""Name of the file in the output folder that says which file belongs to which image."""


@dataclass(frozen=True, repr=False)
class Feature:
    """What the model makes of one image.

    Attributes:
        path: of the image, or its number where it came from memory.
        embedding: float32 [D], what the classifier would read.
        maps: layer -> float32 [D, h, w], not normalised; empty if written to a file.
        file: name of the .npz file in the output folder; None if nothing is written. It holds ``embedding`` and one
            ``map_LAYER`` per layer.
    """

    path: str
    embedding: NDArray[np.float32]
    maps: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    file: str | None = None

    def __repr__(self) -> str:
        maps = "".join(f", map {layer}: {' x '.join(map(str, found.shape))}" for layer, found in self.maps.items())
        return f"Feature({self.path!r}, {len(self.embedding)} numbers{maps}{f', in {self.file}' if self.file else ''})"


@dataclass(frozen=True, repr=False)
class Features:
    """What `features` returns: ``results`` in the order asked for, and ``failures``.

    Attributes:
        model: registered name.
        weights: the file, or the name, that they came from.
        layers: whose maps were taken, ascending.
        results: one per image.
        failures: images that could not be used.
    """

    model: str
    weights: str
    layers: tuple[int, ...]
    results: tuple[Feature, ...]
    failures: tuple[Failure, ...]

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failures" if self.failures else ""
        return f"Features({self.model} by {self.weights!r}: {len(self.results)} results{failed})"

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the index as plain values; the arrays stay out."""
        results = [{"path": r.path, "file": r.file, "length": len(r.embedding)} for r in self.results]
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        about = {"model": self.model, "weights": self.weights, "layers": list(self.layers)}
        return {**about, "results": results, "failures": failures}


def features(
    weights: str | Path | Loaded | None = None,
    images: ImageLike | Iterable[ImageLike | Named] = (),
    *,
    layers: Sequence[int] | None = (),
    output: str | Path | None = None,
    batch_size: int = 16,
    img_size: ImageSize = None,
    device: str | torch.device | None = None,
    amp: str = "none",
    model: str | None = None,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Extract one vector per image, and maps of chosen layers. Unreadable files do not stop the others.

    Args:
        weights: as for `vision_ssm.predict`; the name of a model of this library takes its published weights.
        images: one image or several, see `ImageLike`.
        layers: whose maps to take, counted from 0, or from the end if negative: blocks of a model whose maps all have
            one size, stages of a model of several (the ``feature_info`` of the model lists them). None for all.
        output: folder to write one .npz file per image to, named after it, and an index (`INDEX`); files of the same
            names are replaced. Maps are then not kept in memory.
        batch_size: images per run of the model.
        img_size: side, or (height, width), to resize to instead of the size of training; ``native`` for every image
            at its own size, one by one, embedded in strips as it is read (docs/large_images.md).
        device: None takes a GPU if there is one, else the CPU.
        amp: ``none``, ``bf16`` or ``fp16`` autocast.
        model: registered name of the model that a checkpoint belongs to.
        max_pixels: see `vision_ssm.data.images.read_image`.
        on_progress: called with (images done, images in all).

    Raises:
        DataError: no image at all, or the folder cannot be written; ConfigError: an option is out of range;
        CheckpointError: unusable weights; ShapeError: ``img_size`` is too small for the model; with ``native`` that is
        a failure of the image.
    """
    failures: list[Failure] = []
    found = find_images(images, failures)
    folder = None if output is None else Path(output)
    if folder is not None:  # found out now rather than after the work
        require_writable(folder)
    loaded = open_model(weights, model=model, device=device)
    require_command(loaded.info, "features")
    task = loaded.task()
    network = task.backbone(loaded.model)
    taken = _chosen_layers(network, layers)
    batches = prepare_images(
        found,
        loaded,
        task,
        failures,
        batch_size=batch_size,
        img_size=img_size,
        amp=amp,
        max_pixels=max_pixels,
        on_progress=on_progress,
    )
    results: list[Feature] = []
    used = {INDEX}
    for used_images, batch in batches:
        extracted = of_one_image(partial(_extract, network, batch.images, taken, amp), used_images, failures)
        if extracted is None:
            continue
        vectors, maps = extracted
        for row, ((name, _), vector) in enumerate(zip(used_images, vectors, strict=True)):
            if not np.isfinite(vector).all():
                failures.append(Failure(name, "the model's output is not finite"))
                continue
            feature = Feature(name, vector, {layer: map_[row] for layer, map_ in zip(taken, maps, strict=True)})
            results.append(feature if folder is None else _written(feature, folder, used))
    answer = Features(loaded.info.model, loaded.info.source, taken, tuple(results), tuple(failures))
    if folder is not None:
        with whole_file(folder / INDEX) as part:
            part.write_text(json.dumps(answer.to_dict(), indent=1) + "\n", encoding="utf-8")
    return answer


def _chosen_layers(model: nn.Module, layers: Sequence[int] | None) -> tuple[int, ...]:
    if layers is not None and not layers:
        return ()
    known: Any = getattr(model, "feature_info", None)
    if known is None or not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"{type(model).__name__} gives no maps of its layers; leave layers out.")
    count = len(known)
    chosen = range(count) if layers is None else layers
    for layer in chosen:
        if not -count <= layer < count:
            raise ConfigError(f"this model has maps of the layers 0 to {count - 1} (or -{count} to -1), got {layer}.")
    return tuple(sorted({layer % count for layer in chosen}))


@torch.inference_mode()
def _extract(
    model: Any, images: ModelInput, layers: tuple[int, ...], amp: str
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    maps: list[Tensor] = []
    with autocast(next(model.parameters()).device, amp):
        if layers:
            final, maps = model.forward_intermediates(images, indices=list(layers), output_fmt="NCHW")
        else:
            final = model.forward_features(images)
        vectors = _pooled(model, final)
    return _numbers(vectors), [_numbers(map_) for map_ in maps]


def embedding(model: Any, images: ModelInput) -> Tensor:
    """Return what the classifier of a model would read of images, [B, D].

    Raises:
        ConfigError: the model pools nothing.
    """
    return _pooled(model, model.forward_features(images))


def _pooled(model: Any, final: Tensor) -> Tensor:
    vectors: Tensor = model.forward_head(final, pre_logits=True)
    if vectors.dim() != 2:
        raise ConfigError(
            f"the model pools nothing (global_pool=''), so it gives {list(vectors.shape)} instead of one vector per "
            "image; build it with a pooling."
        )
    return vectors


def _numbers(values: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = values.float().cpu().numpy()
    return numbers


def _written(feature: Feature, folder: Path, used: set[str]) -> Feature:
    name = free_name(feature.path, ".npz", used)
    arrays: dict[str, Any] = {f"map_{layer}": map_ for layer, map_ in feature.maps.items()}
    with whole_file(folder / name) as part, part.open("wb") as file:
        np.savez(file, embedding=feature.embedding, **arrays)
    return dataclasses.replace(feature, maps={}, file=name)
