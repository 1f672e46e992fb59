"""Generation: images of a class, by a denoiser that learns to tell the noise in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vision_ssm.data.batches import Batch, Samples, Transform
from vision_ssm.data.labelled.sources import ClassSamples, open_dataset, own_splits
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.subset import Subset
from vision_ssm.errors import CheckpointError, ConfigError, suggestion
from vision_ssm.models.denoisers import DENOISERS
from vision_ssm.models.registry import create_model, require_model
from vision_ssm.storage import whole_file
from vision_ssm.tasks.classes import IMAGENET_CLASSES, imagenet_names, matched
from vision_ssm.tasks.generation.latents import Autoencoder, Latents
from vision_ssm.tasks.generation.meter import GenerationMeter, Judges, Outputs, score_list
from vision_ssm.tasks.generation.process import hybrid_loss, process
from vision_ssm.tasks.generation.sampling import guided, starting_noise, take_noise_away
from vision_ssm.tasks.generation.settings import NOISE_STEPS, GenerationOptions, GenerationSettings, NoiseSchedule
from vision_ssm.tasks.generation.transforms import SampleTransform
from vision_ssm.tasks.matching import match_names
from vision_ssm.tasks.meter import Critic, Maker
from vision_ssm.tasks.scores import Score
from vision_ssm.tasks.sheet import draw_sheet
from vision_ssm.tasks.task import Meter, Result, Task

__all__ = ["Generation"]

STRIDE = 617
"""From one held-out image to the next its step of noise moves on by so many of T, so that few images see all kinds."""


class Generation(Task):
    """Learns to tell the noise in images of a class, and takes it away from noise step by step.

    In training the held-out images are scored by the error of the noise. `vision_ssm.evaluate` makes samples of their
    classes as well and compares these with the images.

    Attributes:
        class_names: in the order of the labels.
        latents: what the model denoises; None for pixels.
        schedule: of the noise.
    """

    name = "generation"
    Settings = GenerationSettings
    Options = GenerationOptions
    settings: GenerationSettings
    options: GenerationOptions
    pictured: Mapping[str, Any] = {"samples": 100, "sampler": "ddim", "steps": 50}

    def __init__(self, settings: GenerationSettings) -> None:
        super().__init__(settings)
        self.class_names: tuple[str, ...] = ()
        self.latents: Latents | None = None
        self.schedule: NoiseSchedule = settings.noise.schedule
        self._mirror = 0.0
        self._judges: Judges | None = None
        self._autoencoder: Autoencoder | None = None

    @property
    def scores(self) -> tuple[Score, ...]:  # type: ignore[override]
        """The error of the noise; in an evaluation by samples what these are like, first."""
        return score_list(self._judges)

    # ------------------------------------------------------------------------------------------------------- data

    def open(self, split: str) -> ClassSamples:
        """Open one split, see `vision_ssm.data.labelled.sources.open_dataset`."""
        data = self.settings.data
        return self.adopt(open_dataset(data.path, split, val_fraction=data.val_fraction, download=data.download))

    def own_splits(self) -> tuple[str, ...]:
        """See `vision_ssm.data.labelled.sources.own_splits`."""
        return own_splits(self.settings.data.path)

    def adopt(self, samples: ClassSamples) -> ClassSamples:  # type: ignore[override]  # classes are needed
        """Match the data's classes with the model's by name, once there are any."""
        return matched(samples, self.class_names) if self.class_names else samples

    def prepare(self, train: ClassSamples) -> None:  # type: ignore[override]
        """Take the class names, and whether images may be mirrored."""
        self.class_names = train.class_names
        asked = self.settings.data.mirror
        self._mirror = 0.5 * (train.mirror_safe if asked is None else asked)

    def subset(self, samples: Samples, positions: Sequence[int], found: str | None = None) -> Samples:
        """Some of the samples with their classes."""
        return Subset(samples, positions, ("targets",), found)

    def groups(self, samples: ClassSamples) -> tuple[int, ...]:  # type: ignore[override]
        """The classes."""
        return samples.targets

    def tally(self, samples: ClassSamples, target: int) -> dict[str, int]:  # type: ignore[override]
        """An image of its class."""
        return {samples.class_names[target]: 1}

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Pixels in [-1, 1] of the size that the model makes, cut from the middle of an image."""
        side: Any = model.img_size
        height, width = (side, side) if isinstance(side, int) else side
        reduction = 1 if self.latents is None else self.latents.reduction
        size = (3, reduction * height, reduction * width)
        half = (0.5, 0.5, 0.5)
        return Preprocessing(size, mean=half, std=half, interpolation="bicubic", crop_pct=1.0)

    def transform(self, preprocessing: Preprocessing, *, train: bool, native: bool = False) -> Transform:
        """Resize and cut to the middle; in training, mirror half of the images where that means the same.

        Raises:
            ConfigError: images are to keep their own size.
        """
        if native:
            raise ConfigError("a generator compares images of its own size; give a size, or leave it out.")
        return SampleTransform(preprocessing, self._mirror if train else 0.0)

    # ------------------------------------------------------------------------------------------------------ model

    def build(self, backbone: str, **options: Any) -> nn.Module:
        """Make the denoiser called ``backbone`` for these classes. Of one of latents, ``img_size`` is in pixels, too.

        Raises:
            ConfigError: it is no denoiser, or the size is no multiple of the latents' reduction; CheckpointError: there
            is no such autoencoder.
        """
        require_model(backbone)
        if backbone not in DENOISERS:
            raise ConfigError(
                f"{backbone} tells no noise, so it makes no images.{suggestion(backbone, DENOISERS)} "
                f"Models that do: {', '.join(DENOISERS)} (--model NAME)."
            )
        if self.latents is None:
            self.latents = self._chosen_latents(backbone)
        if self.latents is not None:
            options = {**options, "in_chans": self.latents.channels}
            if "img_size" in options:
                options["img_size"] = _reduced(options["img_size"], self.latents.reduction)
        return create_model(backbone, **{**options, "num_classes": len(self.class_names)})

    def _chosen_latents(self, name: str) -> Latents | None:
        """What a model that is made for training denoises; its autoencoder is opened now rather than after a while."""
        own, asked = DENOISERS[name].autoencoder, self.settings.latents.autoencoder
        if own is None:
            if asked is not None:
                raise ConfigError(
                    f"{name} denoises pixels, so it has no use for the autoencoder {asked!r}; leave it out."
                )
            return None
        self._autoencoder = Autoencoder(asked or own.hub)
        found = self._autoencoder.latents
        return found if asked is not None else Latents(own.hub, own.scale, own.reduction, found.channels)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The squared error of the noise, and the bound of the variance where the model learns one."""
        x = self._encoded(batch.images, sample=True)
        t = torch.randint(NOISE_STEPS, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        at = process(self.schedule).at(t)
        noisy = at.signal * x + at.noise * noise
        found = hybrid_loss(model(noisy, t, batch.targets), x, noisy, noise, at)
        bound = {} if found.bound is None else {"variance": found.bound.mean()}
        return {"noise": found.noise.mean(), **bound}

    def predict(self, model: nn.Module, batch: Batch) -> Outputs:
        """The error of noise that depends on the image's position alone; with judges the images as well."""
        x = self._encoded(batch.images, sample=False)
        positions = batch.indices.tolist()
        t = (STRIDE * batch.indices % NOISE_STEPS).to(x.device)
        noise = starting_noise(positions, tuple(x.shape[1:]))[0].to(x)  # type: ignore[arg-type]  # of three sides
        at = process(self.schedule).at(t)
        noisy = at.signal * x + at.noise * noise
        errors = hybrid_loss(model(noisy, t, batch.targets), x, noisy, noise, at).noise
        return Outputs(errors) if self._judges is None else Outputs(errors, _pictures(batch.images))

    @torch.no_grad()
    def sample(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        labels: Sequence[int],
        seeds: Sequence[int],
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Image.Image]:
        """Make an image of the class of each label."""
        reduction = 1 if self.latents is None else self.latents.reduction
        height, width = (side // reduction for side in preprocessing.input_size[1:])
        channels: Any = model.in_chans
        device = next(model.parameters()).device
        done = 0

        def count_step() -> None:
            nonlocal done
            done += 1
            on_step(done, self.options.steps)

        decoder = self._opened() if self.latents is not None else None  # before anything is computed
        noise, generators = starting_noise(seeds, (channels, height, width))
        x = take_noise_away(
            guided(model, torch.tensor(labels, device=device), self.options),
            noise.to(device),
            generators,
            self.options,
            schedule=self.schedule,
            learned=bool(model.learn_sigma),
            clip=self.latents is None,
            on_step=count_step,
        )
        if decoder is not None and self.latents is not None:
            x = decoder.decode(x, self.latents.scale)
        if not bool(x.isfinite().all()):
            raise CheckpointError("the samples are not finite: the weights are damaged, or their training diverged.")
        return _pictures(x)

    def _encoded(self, images: Tensor, *, sample: bool) -> Tensor:
        if self.latents is None:
            return images
        return self._opened().encode(images, self.latents.scale, sample=sample)

    def _opened(self) -> Autoencoder:
        if self.latents is None:
            raise TypeError("a model of pixels has no autoencoder")
        if self._autoencoder is None:
            asked = self.options.autoencoder or self.settings.latents.autoencoder or self.latents.autoencoder
            self._autoencoder = Autoencoder(asked).require(self.latents)
        return self._autoencoder

    # ---------------------------------------------------------------------------------------------------- results

    def begin_evaluation(self, samples: ClassSamples, critic: Callable[[str | None], Critic]) -> None:  # type: ignore[override]
        """Choose for which images samples are made, and open who judges them.

        Raises:
            CheckpointError: weights cannot be used; DataError: the classifier does not know the classes.
        """
        if self.latents is not None:
            self._opened()
        asked = None if self.options.classifier is None else critic(self.options.classifier)
        advice = "Ask a classifier of the same classes (--classifier), or none."
        outputs = [] if asked is None else match_names(asked.class_names, self.class_names, advice=advice)
        by_class = np.argsort(np.asarray(samples.targets), kind="stable")
        count = min(self.options.samples, len(samples))
        places = np.linspace(0, len(samples) - 1, count).round().astype(int)
        wanted = frozenset(by_class[places].tolist())
        self._judges = Judges(critic(self.options.features), asked, outputs, wanted)

    def complete(self, meter: Meter, make: Maker) -> None:
        """Make the samples that are to be compared with the images, of their classes and by their positions."""
        found = cast(GenerationMeter, meter)
        asked = found.unmade
        for images in make([label for _, label in asked], [position for position, _ in asked]):
            found.add(images)

    def meter(self) -> GenerationMeter:
        """A fresh meter."""
        asked = self.options
        guidance = f", guidance {asked.guidance:g}" if asked.guidance != 1 else ""
        return GenerationMeter(self.class_names, self._judges, f"{asked.sampler}, {asked.steps} steps{guidance}")

    def results(self, outputs: Any, batch: Batch) -> list[Result | None]:
        """There are none: images are not predicted from images."""
        raise ConfigError("a generator finds nothing in images; `vision-ssm sample` makes some.")

    def pictures(self, meter: Meter, samples: Samples, folder: Path, *, title: str = "") -> list[Path]:
        """``samples.png``: up to ten samples of each of up to ten classes."""
        found = cast(GenerationMeter, meter)
        if not found.shown:
            return []
        path = folder / "samples.png"
        rows = [(self.class_names[label], images) for label, images in sorted(found.shown.items())]
        with whole_file(path) as part:
            draw_sheet(rows).save(part, format="png")
        return [path]

    # ----------------------------------------------------------------------------------------------- weights file

    def record(self) -> dict[str, Any]:
        """The class names, in the order of the labels, what the latents are, and the schedule of the noise."""
        latents = self.latents and self.latents.record()
        return {"class_names": list(self.class_names), "latents": latents, "schedule": self.schedule}

    @classmethod
    def restore(cls, record: Mapping[str, Any], settings: GenerationSettings) -> Self:  # type: ignore[override]
        """Take over what `record` said."""
        names, latents = record.get("class_names"), record.get("latents")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"a generator's record lists texts as its class_names, got {str(names)[:100]}")
        if latents is not None and not isinstance(latents, dict):
            raise CheckpointError(f"a generator's record says what its latents are, or null, got {latents!r}")
        schedule: Any = record.get("schedule")
        if schedule not in get_args(NoiseSchedule):
            raise CheckpointError(f"a generator's record names the schedule of its noise, got {schedule!r}")
        task = cls(settings)
        task.schedule = schedule
        task.class_names, task.latents = tuple(names), None if latents is None else Latents.recorded(latents)
        return task

    @classmethod
    def published_record(cls, model: nn.Module) -> dict[str, Any]:
        """ImageNet's names for a thousand classes, numbers for any other count; the latents of the model's row."""
        about: Any = model
        count, row = int(about.num_classes), DENOISERS[about.pretrained_cfg["architecture"]]
        names = imagenet_names() if count == IMAGENET_CLASSES else [f"class {index}" for index in range(count)]
        own = row.autoencoder
        latents = own and Latents(own.hub, own.scale, own.reduction, int(about.in_chans)).record()
        return {"class_names": list(names), "latents": latents, "schedule": "linear"}

    def knows(self) -> str:
        """How many classes, and some of their names."""
        names = self.class_names
        shown = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:10])}, ..."
        return f"{len(names)} classes ({shown})"


def _pictures(x: Tensor) -> list[Image.Image]:
    """Numbers in [-1, 1], [B, 3, H, W], as RGB images; what is beyond is cut off."""
    levels = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _reduced(size: Any, reduction: int) -> Any:
    """The side, or (height, width), of a latent. Raises ConfigError."""
    sides = [size] if isinstance(size, int) else list(size)
    if any(side % reduction for side in sides):
        raise ConfigError(f"img_size must be a multiple of {reduction}, so that latents are whole, got {size}.")
    reduced = [side // reduction for side in sides]
    return reduced[0] if isinstance(size, int) else tuple(reduced)
