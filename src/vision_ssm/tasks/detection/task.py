"""Detection: boxes, classes and masks of objects, learned by the losses of a detector."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vision_ssm.data.batches import Batch, Sample, Samples, Transform
from vision_ssm.data.geo.raster import RasterFile
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, ConfigError, DataError, notify
from vision_ssm.models.detectors import build_detector
from vision_ssm.models.registry import create_model, list_whole_models
from vision_ssm.tasks.detection.coco_scores import require_scorer
from vision_ssm.tasks.detection.exported import ExportedDetector, detector_form
from vision_ssm.tasks.detection.exports import export
from vision_ssm.tasks.detection.inference import Found, Testing, detect, detect_in_windows, detect_whole
from vision_ssm.tasks.detection.meter import DetectionMeter, score_list
from vision_ssm.tasks.detection.pictures import draw_confusion, draw_precision_recall, draw_predictions
from vision_ssm.tasks.detection.results import Detections
from vision_ssm.tasks.detection.scenes import windows_of_scene
from vision_ssm.tasks.detection.settings import (
    DetectionOptions,
    DetectionSettings,
    HeadSettings,
    TestSettings,
)
from vision_ssm.tasks.detection.sources import ObjectImages, Objects, count_labels, matched, open_objects, own_splits
from vision_ssm.tasks.detection.transforms import Augment, EvalTransform, Sides, TrainTransform
from vision_ssm.tasks.exported import Form, Run, StandIn
from vision_ssm.tasks.fitting import WHOLE, window_of_scene
from vision_ssm.tasks.legend import default_palette
from vision_ssm.tasks.photometric import Distortion
from vision_ssm.tasks.task import Meter, Result, Task
from vision_ssm.tasks.windows import chosen

__all__ = ["Detection"]


class Detection(Task):
    """Boxes, and masks where the data have outlines; COCO's AP. Classes come from the data, or from the weights file.

    Attributes:
        class_names: in the order of the class indices.
        category_ids: the number of each class in the annotation files.
        with_masks: whether the model predicts masks; None before the data or the weights file said so.
        sides: to which size images are resized.
    """

    name = "detection"
    Settings = DetectionSettings
    Options = DetectionOptions
    counted = "objects"
    scenes = True
    unused_parameters = True  # a backbone's last norm, and heads that saw no object

    settings: DetectionSettings
    options: DetectionOptions

    def __init__(self, settings: DetectionSettings) -> None:
        super().__init__(settings)
        data = settings.data
        self.class_names: tuple[str, ...] = ()
        self.category_ids: tuple[int, ...] = ()
        self.with_masks: bool | None = settings.head.masks
        self.heads = settings.head
        self.testing = settings.test
        self.sides = Sides(data.short_side, data.long_side, data.antialias)
        self.one_class = data.one_class

    @property
    def native(self) -> bool:  # type: ignore[override]  # a setting and a wish decide
        """Whether images keep their size: trained so, or cut into windows that somebody asks for."""
        return self.settings.data.short_side is None or isinstance(self.options.window, int)

    @property
    def scores(self) -> Any:  # type: ignore[override]  # masks are scored where there are any
        """COCO's twelve figures for boxes, and for masks where the model has them."""
        return score_list(bool(self.with_masks))

    # ------------------------------------------------------------------------------------------------------- data

    def open(self, split: str) -> ObjectImages:
        """Open one split, see `vision_ssm.tasks.detection.sources.open_objects`."""
        return self.adopt(self._open(split, strict=True))

    def open_unseen(self, split: str) -> ObjectImages:
        """Open one split although its annotations may be wrong."""
        return self._open(split, strict=False)

    def _open(self, split: str, *, strict: bool) -> ObjectImages:
        data = self.settings.data
        return open_objects(data.path, split, val_fraction=data.val_fraction, one_class=self.one_class, strict=strict)

    def own_splits(self) -> tuple[str, ...]:
        """See `vision_ssm.tasks.detection.sources.own_splits`."""
        return own_splits(self.settings.data.path)

    def adopt(self, samples: ObjectImages) -> ObjectImages:  # type: ignore[override]  # classes are needed
        """Match the data's classes with the model's by name, once there are any."""
        objects, outlined = samples.outlined
        if self.with_masks and outlined < objects:
            notify(
                f"masks are not scored: {objects - outlined:,} of the {objects:,} objects of {samples.name!r} have no "
                f"outline, the first on {samples.without_outline}."
            )
        return matched(samples, self.class_names, self.category_ids) if self.class_names else samples

    def prepare(self, train: ObjectImages) -> None:  # type: ignore[override]
        """Take over the classes, and whether there are masks to learn.

        Raises:
            DataError: no object is annotated, or masks are asked for and there are objects without an outline.
            ConfigError: COCO's scores cannot be computed here.
        """
        require_scorer()
        objects, outlined = train.outlined
        if not objects:
            raise DataError(f"there is nothing to learn: no object is annotated in {train.name!r}.")
        self.class_names, self.category_ids = train.class_names, train.category_ids
        if self.with_masks is None:
            self.with_masks = outlined == objects
            if 0 < outlined < objects:
                notify(
                    f"boxes alone are learned: {objects - outlined:,} of the {objects:,} objects of {train.name!r} "
                    f"have no outline, the first on {train.without_outline}."
                )
        elif self.with_masks and outlined < objects:
            raise DataError(
                f"head.masks asks for masks, and {objects - outlined:,} of the {objects:,} objects of {train.name!r} "
                "have a box only; add their outlines, or leave head.masks out."
            )

    def tally(self, samples: ObjectImages, target: Objects) -> dict[str, int]:  # type: ignore[override]
        """The objects of each class."""
        return count_labels(target, samples.class_names)

    def faults(self, samples: ObjectImages) -> list[tuple[str, str]]:  # type: ignore[override]
        """What is wrong in the annotation files."""
        return [(fault.file, fault.text) for fault in samples.faults if not fault.harmless]

    def asides(self, samples: ObjectImages) -> list[tuple[str, str]]:  # type: ignore[override]
        """What is unusual in them, and does no harm."""
        return [(fault.file, fault.text) for fault in samples.faults if fault.harmless]

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """What the backbone declares, with bilinear resizing."""
        own = super().preprocessing(self.backbone(model)).to_dict()
        return Preprocessing.from_dict({**own, "interpolation": "bilinear", "crop_pct": 1.0})

    def sized(self, preprocessing: Preprocessing, size: int | tuple[int, int]) -> Preprocessing:
        """Images keep their shape, so the size asked for is that of the shorter side."""
        if not isinstance(size, int):
            raise ConfigError(f"images keep their shape; give their shorter side as one number, got {size}.")
        self.sides = Sides(size, None, self.sides.antialias)
        return preprocessing

    def transform(self, preprocessing: Preprocessing, *, train: bool, native: bool = False) -> Transform:
        """Move image and objects together in training; in evaluation objects stay in pixels of the file."""
        if not train:
            return EvalTransform(preprocessing, Sides() if native else self.sides)
        chosen = self.settings.augment
        augment = Augment(
            resize=chosen.resize,
            jitter=chosen.jitter,
            crop=preprocessing.input_size[1:],
            on_objects=chosen.on_objects,
            short_sides=chosen.short_sides,
            crop_branch=chosen.crop_branch,
            hflip=chosen.hflip,
            vflip=chosen.vflip,
            turns=chosen.rotate,
            distortion=Distortion() if chosen.photometric else None,
            masks=bool(self.with_masks),
        )
        return TrainTransform(preprocessing, self.sides, augment)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images and targets stay lists: images have sizes of their own, and objects are as many as there are."""
        images, targets, sizes, indices = zip(*samples, strict=True)
        return Batch(list(images), list(targets), torch.tensor(sizes), torch.tensor(indices))

    # ------------------------------------------------------------------------------------------------------ model

    def build(self, backbone: str, **options: Any) -> nn.Module:
        """Make a detector around ``backbone``, or take a published one with its own heads."""
        classes = len(self.class_names)
        if backbone in list_whole_models():
            model = create_model(backbone, num_classes=classes, **options)
            task = getattr(model, "published_task", "")
            if task != self.name:
                raise ConfigError(f"{backbone} is a model of the task {task}, and this is {self.name}.")
            masks = bool(getattr(model, "has_masks", False))
            if masks and self.with_masks is False:
                raise ConfigError(
                    f"{backbone} learns masks, and not every object of these data has an outline; train a detector "
                    "around its backbone instead, which `vision-ssm models --json` names."
                )
            self.with_masks = masks
            return model
        head = self.heads.model_dump(exclude={"cascade", "masks"}, exclude_none=True)
        stages = ("cascade_mask", "cascade") if self.heads.cascade else ("mask", "faster")
        test = self.testing
        return build_detector(
            backbone,
            classes,
            kind=stages[0] if self.with_masks else stages[1],
            score_threshold=test.score_threshold,
            nms_threshold=test.nms_threshold,
            detections=test.detections,
            **{**head, **options},
        )

    def backbone(self, model: nn.Module) -> nn.Module:
        """The model of timm within the detector."""
        return model.inner  # type: ignore[return-value]

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The losses of proposals, of each stage, and of masks."""
        found: dict[str, Tensor] = model(batch.images, batch.targets)
        return {name: value.float() for name, value in found.items()}

    def predict(self, model: nn.Module, batch: Batch) -> list[Found]:
        """What is found in each image, in pixels of its file."""
        testing = self._testing()
        sizes = [(int(height), int(width)) for height, width in batch.sizes.tolist()]
        if testing.window is None:
            return detect_whole(model, list(batch.images), sizes)
        return [detect(model, image, size, testing) for image, size in zip(batch.images, sizes, strict=True)]

    def predict_scene(
        self,
        model: nn.Module,
        scene: RasterFile,
        preprocessing: Preprocessing,
        stem: Path | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Result | None:
        """Window by window where windows are asked for, or where the scene is larger than `WHOLE` and nobody said."""
        testing, size = self._testing(), (scene.height, scene.width)
        window = testing.window
        if window is None and self.options.window != "none":
            window = window_of_scene(scene.path, size, preprocessing.input_size[1:])
        if window is None:
            return None
        read = windows_of_scene(scene, preprocessing, next(model.parameters()).device)
        result = self._result(detect_in_windows(model, read, size, window, testing.stride, on_progress))
        if result is None:
            raise DataError("the model's output is not finite")
        return result if scene.grid is None else result.placed(scene.grid)

    def at_once(self, model: nn.Module, size: tuple[int, int], *, scene: bool) -> tuple[nn.Module, tuple[int, int]]:
        """The whole detector, and a window where there are any."""
        window = self._testing().window
        if window is None and scene and self.options.window != "none" and size[0] * size[1] > WHOLE:
            return model, (1, 1)  # windows of the size of training, which need no word
        return model, size if window is None else (min(window, size[0]), min(window, size[1]))

    def exported(self, model: nn.Module) -> Form:
        """See `vision_ssm.tasks.detection.exported`."""
        return detector_form(model)  # type: ignore[arg-type]  # `build` makes no other

    def stand_in(self, run: Run) -> StandIn:
        """See `vision_ssm.tasks.detection.exported`."""
        return ExportedDetector(run, self.testing.score_threshold)

    def _testing(self) -> Testing:
        return Testing(*chosen(self.options, self.testing))

    # ---------------------------------------------------------------------------------------------------- results

    def meter(self) -> DetectionMeter:
        """A fresh meter for these classes."""
        return DetectionMeter(self.class_names, masks=bool(self.with_masks), most=self.testing.detections)

    def results(self, outputs: list[Found], batch: Batch) -> list[Result | None]:
        """The objects of each image whose score is at least the one asked for."""
        return [self._result(found) for found in outputs]

    def _result(self, found: Found) -> Detections | None:
        if not bool(found.boxes.isfinite().all() and found.scores.isfinite().all()):
            return None
        kept = found.scores >= self.options.score
        masks = found.masks
        return Detections(
            found.size,
            found.boxes[kept].numpy(),
            found.labels[kept].numpy(),
            found.scores[kept].numpy(),
            None if masks is None else [masks[index] for index in kept.nonzero()[:, 0].tolist()],
            self.class_names,
            self.category_ids,
            default_palette(len(self.class_names)),
        )

    def export(self, form: str, found: Sequence[tuple[str, Result]]) -> dict[str, str]:
        """See `vision_ssm.tasks.detection.exports.export`."""
        return export(form, [(path, result) for path, result in found if isinstance(result, Detections)])

    def pictures(self, meter: Meter, samples: Samples, folder: Path, *, title: str = "") -> list[Path]:
        """``precision_recall.png``, ``confusion.png`` and ``predictions.png``."""
        if not isinstance(meter, DetectionMeter) or not isinstance(samples, ObjectImages):
            raise TypeError(f"expected meter and samples of this task, got {type(meter)} and {type(samples)}")
        paths = [folder / name for name in ("precision_recall.png", "confusion.png", "predictions.png")]
        draw_precision_recall(meter, paths[0], title=title)
        draw_confusion(meter, paths[1], title=title)
        draw_predictions(meter, samples, paths[2], title=title)
        return paths

    # ----------------------------------------------------------------------------------------------- weights file

    def record(self) -> dict[str, Any]:
        """Names and numbers of the classes, the heads, and how images are tested."""
        return {
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "masks": bool(self.with_masks),
            "heads": self.heads.model_dump(),
            "test": self.testing.model_dump(),
            "short_side": self.sides.short,
            "long_side": self.sides.long,
            "antialias": self.sides.antialias,
            "one_class": self.one_class,
        }

    @classmethod
    def restore(cls, record: Mapping[str, Any], settings: DetectionSettings) -> Self:  # type: ignore[override]
        """Take over what `record` said."""
        names, ids = record.get("class_names"), record.get("category_ids")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"a detector's record lists texts as its class_names, got {str(names)[:100]}")
        if not isinstance(ids, list) or len(ids) != len(names) or not all(type(key) is int for key in ids):
            raise CheckpointError("a detector's record has a whole number as category id for each class")
        if not isinstance(record.get("masks"), bool):
            raise CheckpointError(f"a detector's record says whether it has masks, got {record.get('masks')!r}")
        sides = {key: record.get(key) for key in ("short_side", "long_side", "one_class")}
        try:
            heads = HeadSettings.model_validate(record.get("heads") or {})
            test = TestSettings.model_validate(record.get("test") or {})
            about = {**settings.data.model_dump(), **sides, "antialias": record.get("antialias", False)}
            data = type(settings.data).model_validate(about)
        except ValueError as error:
            raise CheckpointError(f"a detector's record has heads, test settings and sides: {error}") from error
        task = cls(settings.model_copy(update={"data": data, "head": heads, "test": test}))
        task.class_names, task.category_ids, task.with_masks = tuple(names), tuple(ids), bool(record["masks"])
        return task

    @classmethod
    def published_record(cls, model: nn.Module) -> dict[str, Any]:
        """COCO's names and numbers for 80 classes, plain numbers for any other count; the published test rule."""
        outputs = int(getattr(model, "num_classes", 0))
        listed = json.loads(files(__package__).joinpath("coco80.json").read_text(encoding="utf-8"))
        if outputs != len(listed):
            listed = [{"id": index, "name": f"class {index}"} for index in range(outputs)]
        square = getattr(model, "square", None)
        return {
            "class_names": [entry["name"] for entry in listed],
            "category_ids": [entry["id"] for entry in listed],
            "masks": bool(getattr(model, "has_masks", False)),
            "short_side": square or 800,
            "long_side": square or 1333,
            "antialias": square is not None,
        }

    def knows(self) -> str:
        """How many classes, and some of their names."""
        names = self.class_names
        shown = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:10])}, ..."
        kinds = f"{len(names)} classes" if len(names) != 1 else "one class"
        return f"{'masks' if self.with_masks else 'boxes'} of {kinds} of objects ({shown})"
