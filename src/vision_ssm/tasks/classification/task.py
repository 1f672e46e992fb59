"""Image classification: one class per image, learned by cross-entropy on hard, smoothed or mixed targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from PIL import Image
from timm.data.mixup import Mixup
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.data.bands import AnyImage, described_bands, samples_of
from vision_ssm.data.batches import Batch, Samples, Transform
from vision_ssm.data.geo.raster import Raster
from vision_ssm.data.labelled.sources import ClassSamples, open_dataset, own_splits
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.subset import Subset
from vision_ssm.errors import CheckpointError, DataError, ShapeError, notify
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.classes import IMAGENET_CLASSES, imagenet_names, matched
from vision_ssm.tasks.classification.bands import BandTransform, are_colours, left_out
from vision_ssm.tasks.classification.exported import ExportedClassifier, classifier_form
from vision_ssm.tasks.classification.losses import class_weights, weighted_cross_entropy
from vision_ssm.tasks.classification.meter import TOP_K, ClassificationMeter
from vision_ssm.tasks.classification.pictures import (
    draw_calibration,
    draw_confusion,
    draw_mistakes,
    draw_predictions,
)
from vision_ssm.tasks.classification.remarks import remarks_on_classes
from vision_ssm.tasks.classification.results import Classes
from vision_ssm.tasks.classification.settings import AugmentSettings, ClassificationOptions, ClassificationSettings
from vision_ssm.tasks.classification.transforms import build_eval_transform, build_train_transform, to_tensor
from vision_ssm.tasks.exported import Form, Run
from vision_ssm.tasks.scores import Score
from vision_ssm.tasks.task import Meter, Result, Task

__all__ = ["Classification"]

PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # that the settings may say otherwise

MISTAKES = 100
"""So many are listed by name."""


@moved.arguments
class Classification(Task):
    """Cross-entropy; top-1, and top-5 of more than five classes.

    Class names come from the training data, or from the weights file.
    """

    name = "classification"
    scenes = True
    Settings = ClassificationSettings
    Options = ClassificationOptions
    settings: ClassificationSettings
    options: ClassificationOptions

    @property
    def scores(self) -> tuple[Score, ...]:  # type: ignore[override]
        """Top-1, top-5 where it says something, and the loss."""
        top5 = (Score("top5", "top-5", "%"),) if len(self.class_names) > TOP_K else ()
        return (Score("top1", "top-1", "%"), *top5, Score("loss", "loss", higher_is_better=False))

    def __init__(self, settings: ClassificationSettings) -> None:
        super().__init__(settings)
        self.class_names: tuple[str, ...] = ()
        self.repeats = settings.augment.repeats
        self.balanced = settings.data.balanced
        self.batch_multiple = 2 if settings.augment.mixes else 1  # mixup pairs the images of a batch
        self._mirror_safe = True
        self._mixup: Mixup | None = None
        self._class_weights: Tensor | None = None

    # ------------------------------------------------------------------------------------------------------- data

    def open(self, split: str) -> ClassSamples:
        """Open one split, see `vision_ssm.data.labelled.sources.open_dataset`."""
        data = self.settings.data
        samples = open_dataset(data.path, split, val_fraction=data.val_fraction, download=data.download)
        return self.adopt(samples)

    def own_splits(self) -> tuple[str, ...]:
        """See `vision_ssm.data.labelled.sources.own_splits`."""
        return own_splits(self.settings.data.path)

    def adopt(self, samples: ClassSamples) -> ClassSamples:  # type: ignore[override]  # classes are needed
        """Match the data's classes with the model's by name, once there are any."""
        return matched(samples, self.class_names) if self.class_names else samples

    def prepare(self, train: ClassSamples) -> None:  # type: ignore[override]
        """Take the class names, and whether mirrored images mean the same. Raises DataError for a single class."""
        if len(train.class_names) < 2:
            raise DataError(
                f"there is nothing to learn: all images of {train.name!r} are of one class, "
                f"{', '.join(map(repr, train.class_names))}; expected a folder per class, and two or more."
            )
        self.class_names, self._mirror_safe = train.class_names, train.mirror_safe
        self._mixup = _mixup(self.settings.augment, len(self.class_names)) if self.settings.augment.mixes else None
        asked = self.settings.loss.class_weights
        self._class_weights = None if asked is None else class_weights(asked, train.targets, len(self.class_names))

    def subset(self, samples: Samples, positions: Sequence[int], found: str | None = None) -> Samples:
        """Some of the samples with their classes."""
        return Subset(samples, positions, ("targets",), found)

    def groups(self, samples: ClassSamples) -> tuple[int, ...]:  # type: ignore[override]
        """The classes."""
        return samples.targets

    def remarks(self, train: ClassSamples, val: ClassSamples) -> list[str]:  # type: ignore[override]
        """Classes of few images, and of very different numbers of them."""
        return remarks_on_classes(train, val, balanced=self.balanced or self.settings.loss.class_weights is not None)

    def tally(self, samples: ClassSamples, target: int) -> dict[str, int]:  # type: ignore[override]
        """An image of its class."""
        return {samples.class_names[target]: 1}

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """What the model declares, with what ``data.`` says otherwise."""
        data = self.settings.data
        said = {name: getattr(data, name) for name in PREPROCESSING if getattr(data, name) is not None}
        return dataclasses.replace(super().preprocessing(model), **said)

    def transform(self, preprocessing: Preprocessing, *, train: bool, native: bool = False) -> Transform:
        """Transform the image; its class stays."""
        augment = self.settings.augment
        if not are_colours(preprocessing):
            unused = left_out(preprocessing, augment) if train else []
            if unused:
                told = described_bands(preprocessing.input_size[0], preprocessing.samples)
                notify(f"{' and '.join(unused)} left out: for three colours of 8 bits, and these images have {told}.")
            chosen = augment if train else None
            return _ImageOnly(BandTransform(preprocessing, chosen, mirror_safe=self._mirror_safe, native=native))
        if native:
            return _ImageOnly(to_tensor(preprocessing), preprocessing)
        if train:
            chain = build_train_transform(preprocessing, augment, mirror_safe=self._mirror_safe)
            return _ImageOnly(chain, preprocessing)
        return _ImageOnly(build_eval_transform(preprocessing), preprocessing)

    def transform_rows(self, preprocessing: Preprocessing) -> Normalise:
        """At its own size an image is only normalised."""
        return Normalise(preprocessing)

    # ------------------------------------------------------------------------------------------------------ model

    def build(self, backbone: str, **options: Any) -> nn.Module:
        """Make ``backbone`` with one output per class."""
        return create_model(backbone, **{**options, "num_classes": len(self.class_names)})

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy, each class's part times its weight. With mixing on, ``batch.images`` is overwritten."""
        images, targets, smoothing = batch.images, batch.targets, self.settings.augment.label_smoothing
        if self._mixup is not None:  # the smoothing is in the mixed targets already
            (images, targets), smoothing = self._mixup(images, targets), 0.0
        logits = model(images).float()
        return {"loss": weighted_cross_entropy(logits, targets, self._class_weights, smoothing)}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, classes] in float32."""
        logits = model(batch.images)
        expected = (len(batch.indices), len(self.class_names))
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(f"the model must give {list(expected)}, a number per image and class name, got {given}.")
        return logits.float()

    # ------------------------------------------------------------------------------------------------------ export

    def exported(self, model: nn.Module) -> Form:
        """Logits, and the vector that they come from."""
        return classifier_form(model)

    def stand_in(self, run: Run) -> ExportedClassifier:
        """See `vision_ssm.tasks.classification.exported`."""
        return ExportedClassifier(run)

    # ---------------------------------------------------------------------------------------------------- results

    def meter(self) -> ClassificationMeter:
        """A fresh meter for these classes."""
        return ClassificationMeter(self.class_names)

    def results(self, outputs: Tensor, batch: Batch) -> list[Result | None]:
        """The most probable classes of each image."""
        count = min(self.options.top_k, outputs.shape[1])
        probabilities = outputs.softmax(dim=1).cpu()
        top = probabilities.topk(count)
        return [
            Classes(tuple((self.class_names[index], p) for index, p in zip(indices, values, strict=True)))
            if is_finite
            else None
            for indices, values, is_finite in zip(
                top.indices.tolist(), top.values.tolist(), probabilities.isfinite().all(dim=1).tolist(), strict=True
            )
        ]

    def details(self, meter: Meter, samples: Samples) -> dict[str, Any]:
        """What the meter knows, and the files of up to `MISTAKES` mistakes, the surest first."""
        wrong = self._own(meter).mistakes()[:MISTAKES]
        names = self.class_names
        mistakes = [
            {"path": samples.paths[guess.position], "true": names[guess.true], "predicted": names[guess.predicted],
             "probability": guess.probability}
            for guess in wrong
        ]  # fmt: skip
        return {**meter.details(), "mistakes": mistakes}

    def pictures(self, meter: Meter, samples: Samples, folder: Path, *, title: str = "") -> list[Path]:
        """``confusion.png``, ``predictions.png``, ``mistakes.png`` and ``calibration.png``."""
        found = self._own(meter)
        paths = [folder / f"{name}.png" for name in ("confusion", "predictions", "mistakes", "calibration")]
        draw_confusion(found, paths[0], title=title)
        draw_predictions(found, samples, paths[1], title=title)
        draw_mistakes(found, samples, paths[2], title=title)
        draw_calibration(found, paths[3], title=title)
        return paths

    @staticmethod
    def _own(meter: Meter) -> ClassificationMeter:
        if not isinstance(meter, ClassificationMeter):
            raise TypeError(f"expected the meter of this task, got {type(meter).__name__}")
        return meter

    # ----------------------------------------------------------------------------------------------- weights file

    def record(self) -> dict[str, Any]:
        """The class names, in the order of the outputs."""
        return {"class_names": list(self.class_names)}

    @classmethod
    def restore(cls, record: Mapping[str, Any], settings: ClassificationSettings) -> Self:  # type: ignore[override]
        """Take the class names from the record."""
        names = record.get("class_names")
        if isinstance(names, str) or not isinstance(names, Sequence) or not names:
            raise CheckpointError(f"a classifier's record lists its class_names, got {names!r}")
        if not all(isinstance(name, str | int | float) for name in names):
            raise CheckpointError(f"a classifier's record lists texts as its class_names, got {names!r}")
        task = cls(settings)
        task.class_names = tuple(str(name) for name in names)
        return task

    @classmethod
    def published_record(cls, model: nn.Module) -> dict[str, Any]:
        """ImageNet's names for a thousand outputs, numbers for any other count."""
        outputs = int(getattr(model, "num_classes", 0))
        names = imagenet_names() if outputs == IMAGENET_CLASSES else [f"class {index}" for index in range(outputs)]
        return {"class_names": list(names)}

    def knows(self) -> str:
        """How many classes, and some of their names."""
        names = self.class_names
        shown = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:10])}, ..."
        return f"{len(names)} classes ({shown})"


def _mixup(augment: AugmentSettings, classes: int) -> Mixup:
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch_prob,
        mode=augment.mix_mode,
        label_smoothing=augment.label_smoothing,
        num_classes=classes,
    )


class _ImageOnly:
    """Transform images and hand their targets on.

    Args:
        transform: of images; with ``pictures`` of RGB pictures only.
        pictures: what they are prepared for, so that scenes of three bands become some.
    """

    def __init__(self, transform: Any, pictures: Preprocessing | None = None) -> None:
        self._transform, self._pictures = transform, pictures

    def __call__(self, image: AnyImage, target: Any) -> tuple[Tensor, Any]:
        if isinstance(image, Raster):
            if image.valid is not None and not image.valid.any():
                raise DataError("not one of its pixels holds data, so there is nothing to classify")
            if self._pictures is not None:
                image = Image.fromarray(samples_of(image, self._pictures))
        return self._transform(image), target
