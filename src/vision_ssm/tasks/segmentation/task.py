"""Semantic segmentation: one class per pixel, learned by cross-entropy in a decode head and an auxiliary one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vision_ssm.data.batches import Batch, Sample, Samples, Transform
from vision_ssm.data.geo.gdal import EXTRA, is_installed
from vision_ssm.data.geo.raster import RasterFile
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.models.registry import create_model, list_whole_models
from vision_ssm.models.segmentors import build_segmentor
from vision_ssm.tasks.exported import Form, Run
from vision_ssm.tasks.fitting import WHOLE, window_of_scene
from vision_ssm.tasks.legend import default_palette
from vision_ssm.tasks.photometric import Distortion
from vision_ssm.tasks.scores import Score
from vision_ssm.tasks.segmentation.checks import require_whole
from vision_ssm.tasks.segmentation.classes import ade20k
from vision_ssm.tasks.segmentation.exported import ExportedSegmentor, segmentor_form
from vision_ssm.tasks.segmentation.inference import ClassMap, Testing, segment
from vision_ssm.tasks.segmentation.layouts import Fault
from vision_ssm.tasks.segmentation.losses import pixel_cross_entropy
from vision_ssm.tasks.segmentation.meter import SegmentationMeter
from vision_ssm.tasks.segmentation.pictures import draw_confusion, draw_predictions
from vision_ssm.tasks.segmentation.results import Segments
from vision_ssm.tasks.segmentation.scenes import segment_scene
from vision_ssm.tasks.segmentation.settings import SegmentationOptions, SegmentationSettings, TestSettings
from vision_ssm.tasks.segmentation.sources import ChosenMasks, MaskSamples, matched, open_masks, own_splits
from vision_ssm.tasks.segmentation.transforms import Augment, EvalTransform, TrainTransform
from vision_ssm.tasks.task import Meter, Result, Task
from vision_ssm.tasks.windows import chosen

__all__ = ["Segmentation"]


class Segmentation(Task):
    """Cross-entropy per pixel; mean IoU. Class names and colours come from the data, or from the weights file."""

    name = "segmentation"
    Settings = SegmentationSettings
    Options = SegmentationOptions
    scores = (
        Score("miou", "mean IoU", "%"),
        Score("macc", "mean accuracy", "%"),
        Score("aacc", "pixel accuracy", "%"),
    )
    counted = "pixels"
    scenes = True
    sync_batch_norm = True
    unused_parameters = True  # a backbone's last norm, and stages' norms whose maps nobody reads

    settings: SegmentationSettings
    options: SegmentationOptions

    def __init__(self, settings: SegmentationSettings) -> None:
        super().__init__(settings)
        self.class_names: tuple[str, ...] = ()
        self.palette: tuple[tuple[int, int, int], ...] = ()
        self.heads = settings.head.model_dump()
        self.testing = settings.test
        self.short_side = settings.data.short_side
        self.native = self.short_side is None

    # ------------------------------------------------------------------------------------------------------- data

    def open(self, split: str) -> MaskSamples:
        """Open one split, see `vision_ssm.tasks.segmentation.sources.open_masks`."""
        data = self.settings.data
        return self.adopt(open_masks(data.path, split, val_fraction=data.val_fraction))

    def open_unseen(self, split: str) -> MaskSamples:
        """Open one split without reading masks ahead."""
        return open_masks(
            self.settings.data.path, split, val_fraction=self.settings.data.val_fraction, look_ahead=False
        )

    def own_splits(self) -> tuple[str, ...]:
        """See `vision_ssm.tasks.segmentation.sources.own_splits`."""
        return own_splits(self.settings.data.path)

    def adopt(self, samples: MaskSamples) -> MaskSamples:  # type: ignore[override]  # classes are needed
        """Match the data's classes with the model's by name, once there are any.

        Raises:
            DataError: also where `open_unseen` has passed over something that does not fit.
        """
        require_whole(_faults(samples))
        return matched(samples, self.class_names, self.palette) if self.class_names else samples

    def prepare(self, train: MaskSamples) -> None:  # type: ignore[override]
        """Take the classes' names and colours. Raises DataError for a single class, ConfigError for wrong weights."""
        if len(train.class_names) < 2:
            raise DataError(
                f"there is nothing to learn: all pixels of {train.name!r} are of one class, {train.class_names[0]!r}; "
                "expected two or more, the background being one of them."
            )
        self.class_names, self.palette = train.class_names, train.palette
        weights = self.settings.loss.class_weights
        if weights is not None and len(weights) != len(self.class_names):
            raise ConfigError(
                f"loss.class_weights must have a factor for each of the {len(self.class_names)} classes, got "
                f"{len(weights)}."
            )

    def subset(self, samples: MaskSamples, positions: Sequence[int], found: str | None = None) -> ChosenMasks:  # type: ignore[override]
        """Some of the samples with their masks."""
        return ChosenMasks(samples, positions, found)

    def faults(self, samples: MaskSamples) -> list[tuple[str, str]]:  # type: ignore[override]
        """Masks and images that do not belong together, and what has none."""
        return [(str(fault.path), fault.text) for fault in _faults(samples) if fault.kind != "harmless"]

    def asides(self, samples: MaskSamples) -> list[tuple[str, str]]:  # type: ignore[override]
        """Images to be tested on that have no masks."""
        return [(str(fault.path), fault.text) for fault in _faults(samples) if fault.kind == "harmless"]

    def tally(self, samples: MaskSamples, target: Tensor) -> dict[str, int]:  # type: ignore[override]
        """The pixels of each class."""
        counts = torch.bincount(target.flatten().long(), minlength=256).tolist()
        return dict(zip(samples.class_names, counts, strict=False))

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """What the backbone declares, with bilinear resizing."""
        own = super().preprocessing(self.backbone(model)).to_dict()
        return Preprocessing.from_dict({**own, "interpolation": "bilinear", "crop_pct": 1.0})

    def sized(self, preprocessing: Preprocessing, size: int | tuple[int, int]) -> Preprocessing:
        """Images keep their shape, so the size asked for is that of the shorter side."""
        if not isinstance(size, int):
            raise ConfigError(f"images to segment keep their shape; give their shorter side as one number, got {size}.")
        self.short_side = size
        return preprocessing

    def transform(self, preprocessing: Preprocessing, *, train: bool, native: bool = False) -> Transform:
        """Transform image and mask together in training; in evaluation the mask keeps the size of its file."""
        if not train:
            return EvalTransform(preprocessing, None if native else self.short_side)
        chosen = self.settings.augment
        augment = Augment(
            size=self.short_side,
            scale=chosen.ratio,
            crop=preprocessing.input_size[1:],
            most_of_one_class=chosen.cat_max_ratio,
            on_classes=chosen.on_classes,
            hflip=chosen.hflip,
            vflip=chosen.vflip,
            turns=chosen.rotate,
            distortion=Distortion() if chosen.photometric else None,
        )
        return TrainTransform(preprocessing, augment)

    def transform_rows(self, preprocessing: Preprocessing) -> Normalise | None:
        """At its own size an image is only normalised, and read in strips where it is taken whole."""
        testing = self._testing()
        whole = testing.window is None and testing.scales == (1.0,) and not testing.flips
        return Normalise(preprocessing) if whole else None

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack crops of one size; images of several sizes stay a list, like the masks of files."""
        images, targets, sizes, indices = zip(*samples, strict=True)
        numbers = torch.tensor(sizes), torch.tensor(indices)
        joined: Any = torch.stack(images) if len({image.shape for image in images}) == 1 else list(images)
        alike = all(isinstance(mask, Tensor) for mask in targets) and len({mask.shape for mask in targets}) == 1
        return Batch(joined, torch.stack(targets) if alike else list(targets), *numbers)

    # ------------------------------------------------------------------------------------------------------ model

    def build(self, backbone: str, **options: Any) -> nn.Module:
        """Make a segmentor around ``backbone``, or take a published one with its own heads."""
        if backbone in list_whole_models():
            return create_model(backbone, num_classes=len(self.class_names), **options)
        return build_segmentor(backbone, {**self.heads, "num_classes": len(self.class_names)}, **options)

    def backbone(self, model: nn.Module) -> nn.Module:
        """The model of timm within the segmentor."""
        return model.inner  # type: ignore[return-value]

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the decode head, and weighted that of the auxiliary head."""
        given, settings = self.settings.loss.class_weights, self.settings.loss
        weights = None if given is None else torch.tensor(given, device=batch.targets.device)
        named = {"decode": 1.0, "auxiliary": settings.auxiliary}
        return {
            name: factor * pixel_cross_entropy(logits, batch.targets, weights=weights, average=settings.average)
            for (name, factor), logits in zip(named.items(), model(batch.images), strict=False)
        }

    def predict(self, model: nn.Module, batch: Batch) -> list[ClassMap]:
        """A map of classes per image, at the size of its file."""
        testing = self._testing()
        images = [batch.images] if not isinstance(batch.images, list | Tensor) else [x[None] for x in batch.images]
        valid = batch.valid or [None] * len(images)
        return [
            segment(model, image, (int(height), int(width)), testing, known)  # type: ignore[arg-type]
            for image, (height, width), known in zip(images, batch.sizes.tolist(), valid, strict=True)
        ]

    def predict_scene(
        self,
        model: nn.Module,
        scene: RasterFile,
        preprocessing: Preprocessing,
        stem: Path | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Result | None:
        """Window by window where windows are asked for, or where the scene is larger than `WHOLE` and nobody said."""
        testing = self._testing()
        if testing.window is None and self.options.window != "none":
            size = scene.height, scene.width
            testing = replace(testing, window=window_of_scene(scene.path, size, preprocessing.input_size[1:]))
        if testing.window is None:
            return None
        return segment_scene(
            model,  # type: ignore[arg-type]
            scene,
            preprocessing,
            testing,
            self.class_names,
            self.palette,
            path=None if stem is None else Path(f"{stem}.tif"),
            polygons=self.options.polygons,
            on_progress=on_progress,
        )

    def at_once(self, model: nn.Module, size: tuple[int, int], *, scene: bool) -> tuple[nn.Module, tuple[int, int]]:
        """The backbone, since everything after it is done in strips, and a window where there are any."""
        window = self._testing().window
        if window is None and scene and self.options.window != "none" and size[0] * size[1] > WHOLE:
            return self.backbone(model), (1, 1)  # windows of the size of training, which need no word
        return self.backbone(model), size if window is None else (min(window, size[0]), min(window, size[1]))

    def ask(self, options: Mapping[str, Any]) -> None:
        """See `Task.ask`. Raises ConfigError as well where polygons need the extra ``geo``."""
        super().ask(options)
        if self.options.polygons and not is_installed():
            raise ConfigError(f"polygons need {EXTRA}.")

    def wants_files(self) -> str:
        """Polygons are files."""
        return "polygons" if self.options.polygons else ""

    def _testing(self) -> Testing:
        asked, own = self.options, self.testing
        return Testing(*chosen(asked, own), own.blend == "tapered", asked.scales, asked.flips)

    # ------------------------------------------------------------------------------------------------------ export

    def exported(self, model: nn.Module) -> Form:
        """Logits at stride 4."""
        return segmentor_form(model)  # type: ignore[arg-type]

    def stand_in(self, run: Run) -> ExportedSegmentor:
        """See `vision_ssm.tasks.segmentation.exported`."""
        return ExportedSegmentor(run, len(self.class_names))

    # ---------------------------------------------------------------------------------------------------- results

    def meter(self) -> SegmentationMeter:
        """A fresh meter for these classes."""
        return SegmentationMeter(self.class_names)

    def results(self, outputs: list[ClassMap], batch: Batch) -> list[Result | None]:
        """The classes of each image, and how much of it they cover."""
        return [
            Segments(
                found.classes.cpu().numpy(),
                self.class_names,
                self.palette,
                confidence=None if found.confidence is None else float(found.confidence),
                polygons=self.options.polygons,
            )
            if found.confidence is None or bool(found.confidence.isfinite())
            else None
            for found in outputs
        ]

    def pictures(self, meter: Meter, samples: Samples, folder: Path, *, title: str = "") -> list[Path]:
        """``confusion.png`` and ``predictions.png``."""
        paths = [folder / "confusion.png", folder / "predictions.png"]
        if not isinstance(meter, SegmentationMeter):
            raise TypeError(f"expected the meter of this task, got {type(meter).__name__}")
        draw_confusion(meter, paths[0], title=title)
        draw_predictions(meter, samples, paths[1], title=title)  # type: ignore[arg-type]
        return paths

    # ----------------------------------------------------------------------------------------------- weights file

    def record(self) -> dict[str, Any]:
        """Names and colours of the classes, the heads, and how images are tested."""
        return {
            "class_names": list(self.class_names),
            "palette": [list(colour) for colour in self.palette],
            "heads": self.heads,
            "test": self.testing.model_dump(),
            "short_side": self.short_side,
        }

    @classmethod
    def restore(cls, record: Mapping[str, Any], settings: SegmentationSettings) -> Self:  # type: ignore[override]
        """Take over what `record` said."""
        names, palette = record.get("class_names"), record.get("palette")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"a segmentor's record lists texts as its class_names, got {str(names)[:100]}")
        if not isinstance(palette, list) or len(palette) != len(names) or not all(map(_is_colour, palette)):
            raise CheckpointError("a segmentor's record has a colour, three numbers up to 255, per class")
        try:
            heads = type(settings.head).model_validate(record["heads"]) if record.get("heads") else settings.head
            test = TestSettings.model_validate(record.get("test") or {})
        except ValueError as error:
            raise CheckpointError(f"a segmentor's record has heads and test settings: {error}") from error
        data = settings.data.model_copy(update={"short_side": _side(record.get("short_side"))})
        task = cls(settings.model_copy(update={"data": data, "head": heads, "test": test}))
        task.class_names = tuple(names)
        task.palette = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        return task

    @classmethod
    def published_record(cls, model: nn.Module) -> dict[str, Any]:
        """ADE20K's names and colours for 150 classes, numbers for any other count; its test rule."""
        outputs = int(getattr(model, "num_classes", 0))
        classes = ade20k()
        names, palette = classes.names, classes.palette
        if outputs != len(names):
            names, palette = tuple(f"class {index}" for index in range(outputs)), default_palette(outputs)
        return {"class_names": list(names), "palette": [list(colour) for colour in palette], "short_side": 512}

    def knows(self) -> str:
        """How many classes, and some of their names."""
        names = self.class_names
        shown = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:10])}, ..."
        return f"{len(names)} classes of pixels ({shown})"


def _faults(samples: object) -> Sequence[Fault]:
    return getattr(samples, "faults", ())


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(x) is int and 0 <= x <= 255 for x in value)


def _side(value: object) -> int | None:
    if value is None or (type(value) is int and value > 0):
        return value
    raise CheckpointError(f"a segmentor's short_side is a number of pixels or null, got {value!r}")
