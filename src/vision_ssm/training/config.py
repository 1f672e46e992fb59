"""The settings of a training run: typed, documented, strict, and readable without torch.

A run is described by a recipe (YAML), changed by dotted overrides such as ``optim.lr=3e-4``. Anything unknown or out of
range is a ConfigError that names the file and the key. ``TrainConfig.to_yaml`` is what a run folder keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from vision_ssm.data.splits import VAL_FRACTION
from vision_ssm.errors import ConfigError
from vision_ssm.settings import Section, describe, from_mapping, setting, to_mapping
from vision_ssm.training.recipes import find_recipe

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EmaConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
]


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which model, and what it starts from."""

    prefix: ClassVar[str] = "model."
    name: str = setting("vim_nano", "Model name, see `vision-ssm models`; any model registered with timm works.")
    img_size: int | tuple[int, int] | None = setting(
        None, "Side of the square input in pixels, or [height, width]; null takes the model's own.", at_least=1
    )
    pretrained: bool = setting(False, "Start from the published weights of this model.")
    checkpoint: str | None = setting(None, "Start from this weights file (.safetensors or .pth), ours or published.")
    positions: Literal["grid", "published"] = setting(
        "grid",
        "How a checkpoint's position table of another image size is resized: at its true places, or as the published "
        "fine-tuning did.",
    )
    drop_path_rate: float = setting(
        0.0, "Stochastic depth of the last block; grows linearly from 0.", at_least=0, below=1
    )
    grad_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, about a third more time.", free=True
    )
    options: dict[str, Any] = setting(  # noqa: RUF009 - setting() gives each instance its own dict
        {}, "Further keyword arguments of the model, for instance {class_token: head}."
    )


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, and how they are read."""

    prefix: ClassVar[str] = "data."
    path: str = setting(
        "", "Folder of class folders (with or without train/ and val/), or a name such as digits.", free=True
    )
    val_fraction: float = setting(
        VAL_FRACTION,
        "Share of the images held out where the data have no such part of their own.",
        above=0,
        below=1,
    )
    download: bool = setting(False, "Allow a named data set to be downloaded.", free=True)
    batch_size: int = setting(64, "Images per step and process.", at_least=1)
    eval_batch_size: int | None = setting(
        None, "Images per evaluation step; null takes batch_size.", at_least=1, free=True
    )
    workers: int = setting(
        2, "Processes that read and augment images; the result does not depend on it.", at_least=0, free=True
    )
    crop_pct: float | None = setting(
        None, "Share of the resized image that evaluation crops; null takes the model's own.", above=0, at_most=1
    )
    crop_mode: Literal["center", "squash", "border"] | None = setting(
        None, "center cuts the longer side, squash distorts, border pads; null takes the model's own."
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = setting(
        None, "Resampling of evaluation and training; null takes the model's own."
    )
    mean: tuple[float, float, float] | None = setting(None, "Mean per channel in 0..1; null takes the model's own.")
    std: tuple[float, float, float] | None = setting(
        None, "Standard deviation per channel in 0..1; null takes the model's own.", above=0
    )


@dataclass(frozen=True)
class AugmentConfig(Section):
    """What training does to the images and the targets."""

    prefix: ClassVar[str] = "augment."
    crop: Literal["auto", "resized", "padded", "none"] = setting(
        "auto", "resized: random area scaled up; padded: shift by crop_padding; auto: padded up to 64 pixels."
    )
    crop_padding: int = setting(4, "Pixels of reflected border that `padded` shifts within.", at_least=0)
    scale: tuple[float, float] = setting(
        (0.08, 1.0), "Range of the area that `resized` takes, as a share of the image.", above=0, at_most=1
    )
    ratio: tuple[float, float] = setting((0.75, 1.3333333333333333), "Range of that area's aspect.", above=0)
    hflip: float | None = setting(
        None, "Probability of mirroring left-right; null is 0.5, or 0 for digits.", at_least=0, at_most=1
    )
    vflip: float = setting(0.0, "Probability of mirroring top-bottom.", at_least=0, at_most=1)
    color_jitter: float = setting(0.0, "Strength of colour jitter; unused when auto_augment is set.", at_least=0)
    auto_augment: str | None = setting(None, "timm policy, for instance rand-m9-mstd0.5-inc1.")
    erasing: float = setting(0.0, "Probability of erasing a rectangle.", at_least=0, at_most=1)
    erasing_mode: Literal["pixel", "rand", "const"] = setting("pixel", "What fills the erased rectangle.")
    erasing_count: int = setting(1, "Up to how many rectangles.", at_least=1)
    repeats: int = setting(1, "Repeated augmentation: draws of each image per pass.", at_least=1)
    mixup: float = setting(0.0, "Alpha of mixup's beta distribution; 0 is off.", at_least=0)
    cutmix: float = setting(0.0, "Alpha of cutmix's beta distribution; 0 is off.", at_least=0)
    mix_prob: float = setting(1.0, "Probability that a batch is mixed at all.", at_least=0, at_most=1)
    mix_switch_prob: float = setting(0.5, "Probability of cutmix over mixup when both are on.", at_least=0, at_most=1)
    mix_mode: Literal["batch", "pair", "elem"] = setting("batch", "Whether a batch, a pair or an image has one ratio.")
    label_smoothing: float = setting(0.0, "Probability mass spread over the other classes.", at_least=0, below=1)


@dataclass(frozen=True)
class OptimConfig(Section):
    """How gradients become updates."""

    prefix: ClassVar[str] = "optim."
    name: str = setting("adamw", "Optimiser by its timm name.")
    lr: float = setting(1e-3, "Learning rate at the top of the schedule.", above=0)
    lr_base_batch: int | None = setting(
        None,
        "When set, the rate used is lr × (batch_size × accumulate × processes) / lr_base_batch.",
        at_least=1,
    )
    weight_decay: float = setting(0.05, "Decay of the weights that the model lets decay.", at_least=0)
    betas: tuple[float, float] | None = setting(
        None, "Adam's betas; null keeps the optimiser's own.", at_least=0, below=1
    )
    eps: float | None = setting(None, "Adam's epsilon; null keeps the optimiser's own.", above=0)
    momentum: float = setting(0.9, "Momentum of optimisers that have one.", at_least=0, below=1)
    clip_grad: float | None = setting(None, "Largest norm of the gradient; null does not clip.", above=0)
    layer_decay: float | None = setting(
        None, "Factor of the learning rate per layer from the head down.", above=0, at_most=1
    )
    accumulate: int = setting(1, "Batches whose gradients make one update.", at_least=1)


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """How long, and the learning rate over that time."""

    prefix: ClassVar[str] = "schedule."
    name: Literal["cosine", "constant"] = setting("cosine", "Shape after the warm-up.")
    epochs: int = setting(30, "Passes over the training images.", at_least=1)
    cooldown_epochs: int = setting(
        0, "Further passes at min_lr after the schedule's end; a resumed run may raise it.", at_least=0, free=True
    )
    warmup_epochs: float = setting(0.0, "Linear rise from warmup_lr at the start; part of epochs.", at_least=0)
    warmup_lr: float = setting(0.0, "Learning rate at the start of the warm-up.", at_least=0)
    warmup_prefix: bool = setting(
        False, "The cosine begins after the warm-up and spans the epochs left, instead of running on beneath it."
    )
    min_lr: float = setting(0.0, "Learning rate at the end of the cosine.", at_least=0)
    per: Literal["update", "epoch"] = setting("update", "Whether the rate moves at each update or each epoch.")
    epoch_lag: int = setting(
        0,
        "Epochs the schedule trails by. The official code has 1: its epochs 0 and 1 both run at the start.",
        at_least=0,
    )


@dataclass(frozen=True)
class EmaConfig(Section):
    """A moving average of the weights, evaluated and saved beside them."""

    prefix: ClassVar[str] = "ema."
    decay: float | None = setting(
        None, "Decay per update, for instance 0.9999; null keeps no average.", above=0, below=1
    )
    warmup: bool = setting(False, "Start from a small decay that grows towards `decay`, for short runs.")


@dataclass(frozen=True)
class RunConfig(Section):
    """Where the run lives, what it runs on, and how it reports."""

    prefix: ClassVar[str] = "run."
    output: str = setting("runs", "Folder that holds the run folders.", free=True)
    name: str | None = setting(None, "Name of the run folder; null makes one of the model and the data.", free=True)
    resume: str | None = setting(None, "Continue this run: its folder, or a .ckpt file inside it.", free=True)
    overwrite: bool = setting(False, "Delete what an earlier run left in the run folder.", free=True)
    seed: int = setting(0, "Everything random is a function of this and of the position in the run.", at_least=0)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps ...", free=True)
    amp: Literal["none", "bf16", "fp16"] = setting("none", "Autocast; fp16 scales the loss and needs a GPU.")
    log_every: int = setting(10, "Updates between two step lines of log.jsonl.", at_least=1, free=True)
    eval_every: int = setting(1, "Epochs between two evaluations; the last epoch is always evaluated.", at_least=1)
    checkpoint_minutes: float = setting(
        5.0, "Minutes between two checkpoints inside an epoch; 0 writes one after every update.", at_least=0, free=True
    )


@dataclass(frozen=True)
class TrainConfig(Section):
    """A training run."""

    task: Literal["classification"] = setting("classification", "What is learned.")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check what concerns more than one setting. Raises ConfigError."""
        super().__post_init__()
        if self.model.pretrained and self.model.checkpoint:
            raise ConfigError("model.pretrained and model.checkpoint both say where to start; give one of them.")
        if self.run.resume and self.run.overwrite:
            raise ConfigError("run.resume continues a run and run.overwrite deletes it; give one of them.")
        if self.schedule.warmup_epochs > self.schedule.epochs:
            raise ConfigError(
                f"schedule.warmup_epochs ({self.schedule.warmup_epochs:g}) is longer than schedule.epochs "
                f"({self.schedule.epochs})."
            )
        if self.schedule.warmup_prefix and self.schedule.warmup_epochs == self.schedule.epochs:
            raise ConfigError("schedule.warmup_prefix leaves the cosine no epoch; shorten warmup_epochs.")
        for low, high, key in ((*self.augment.scale, "scale"), (*self.augment.ratio, "ratio")):
            if low > high:
                raise ConfigError(f"augment.{key} must be [smallest, largest], got [{low:g}, {high:g}].")
        if self.mixes and self.data.batch_size % 2:
            raise ConfigError(
                f"mixup and cutmix pair the images of a batch, so data.batch_size must be even, "
                f"got {self.data.batch_size}."
            )

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0

    @property
    def total_epochs(self) -> int:
        """Epochs of the schedule and of the cool-down after it."""
        return self.schedule.epochs + self.schedule.cooldown_epochs

    @property
    def run_folder(self) -> Path:
        """Where the run's files go: the resumed run's folder, else ``output/name``."""
        if self.run.resume:
            resumed = Path(self.run.resume)
            return resumed.parent if resumed.suffix == ".ckpt" else resumed
        return Path(self.run.output) / (self.run.name or f"{self.model.name}-{Path(self.data.path).name or 'run'}")

    @classmethod
    def load(cls, recipe: str | Path | None = None, overrides: Mapping[str, Any] | Iterable[str] = ()) -> TrainConfig:
        """Read a recipe and apply dotted overrides.

        Args:
            recipe: a YAML file, or the name of a recipe that comes with the package; None starts from the defaults.
            overrides: ``{"optim.lr": 3e-4}`` or ``["optim.lr=3e-4"]``, values of the second form in YAML.

        Raises ConfigError naming the file, the key and the nearest valid one.
        """
        values: dict[str, Any] = {}
        source = None
        if recipe is not None:
            source = find_recipe(recipe)
            values = _read_yaml(source)
            _located(source, values)
        for key, value in _override_items(overrides):
            _put(values, key, value)
        return from_mapping(cls, values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from nested mappings, as strictly as ``load``."""
        return from_mapping(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts and lists."""
        return to_mapping(self)

    def to_yaml(self) -> str:
        """The effective configuration, every setting with its value; ``load`` reads it back."""
        values = self.to_dict()
        values["run"].update(resume=None, overwrite=False)  # how this process was started, not what the run is
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False))

    def replace(self, **overrides: Any) -> TrainConfig:
        """A copy with some settings changed: ``config.replace(**{"optim.lr": 1e-4})``."""
        values = self.to_dict()
        for key, value in overrides.items():
            _put(values, key, value)
        return from_mapping(TrainConfig, values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}.")
    return values


def _located(source: Path, values: Mapping[str, Any]) -> None:
    """Check a recipe on its own, so that its faults are told with its name."""
    try:
        from_mapping(TrainConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _override_items(overrides: Mapping[str, Any] | Iterable[str]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    items = []
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"an override is written section.name=value, got {text!r}.")
        try:
            items.append((key.strip(), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: {value!r} is not a YAML value: {error}") from error
    return items


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings. ``model.options.X`` reaches into the options."""
    *sections, name = key.split(".")
    for depth, section in enumerate(sections):
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            known = ", ".join(entry.key for entry in describe(TrainConfig) if entry.key.startswith(sections[0]))
            raise ConfigError(f"{'.'.join(sections[: depth + 1])!r} holds a value, not settings. Settings: {known}.")
        values[section] = dict(inner)  # never change the caller's mapping
        values = values[section]
    values[name] = value
