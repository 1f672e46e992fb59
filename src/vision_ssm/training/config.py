"""The settings of a training run: typed, documented, strict, and readable without torch.

A run is described by a recipe (YAML), changed by dotted overrides such as ``optim.lr=3e-4``. Anything unknown or out of
range is a ConfigError that names the file and the key. ``TrainConfig.to_yaml`` is what a run folder keeps.

What every task has is here; the sections ``data`` and, for instance, ``augment`` are those of the run's task.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import Field, create_model, model_validator

from vision_ssm import moved
from vision_ssm.errors import ConfigError
from vision_ssm.settings import (
    Count,
    Fraction,
    Natural,
    NotNegative,
    OpenFraction,
    Positive,
    Section,
    Share,
    describe,
    from_mapping,
    setting,
    to_mapping,
)
from vision_ssm.tasks.registry import DEFAULT, find_task, task_names
from vision_ssm.tasks.settings import TaskSettings
from vision_ssm.training.recipes import find_recipe, parse_value, read_recipe, write_recipe

__all__ = ["EmaConfig", "ModelConfig", "OptimConfig", "RunConfig", "ScheduleConfig", "TrainConfig", "config_class"]

moved.answer(__name__)


class ModelConfig(Section):
    """Which model, and what it starts from."""

    name: str = setting("vim_nano", "Model name, see `vision-ssm models`; any model registered with timm works.")
    img_size: Count | tuple[Count, Count] | None = setting(
        None, "Side of the square input in pixels, or [height, width]; null takes the model's own."
    )
    pretrained: bool = setting(False, "Start from the published weights of this model.")
    checkpoint: str | None = setting(
        None,
        "Start from this weights file (.safetensors or .pth), ours or published, this run, or these shipped weights.",
    )
    start_required: bool = setting(
        False, "Refuse to begin from random weights; recipes of fine-tuning say so.", free=True
    )
    positions: Literal["grid", "published"] = setting(
        "grid",
        "How a checkpoint's position table of another image size is resized: at its true places, or as the published "
        "fine-tuning did.",
    )
    drop_path_rate: Fraction = setting(0.0, "Stochastic depth of the last block; grows linearly from 0.")
    grad_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, about a third more time.", free=True
    )
    options: dict[str, Any] = setting({}, "Further keyword arguments of the model, for instance {class_token: head}.")

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.checkpoint:
            raise ConfigError("model.pretrained and model.checkpoint both say where to start; give one of them.")
        return self


class OptimConfig(Section):
    """How gradients become updates."""

    name: str = setting("adamw", "Optimiser by its timm name.")
    lr: Positive = setting(1e-3, "Learning rate at the top of the schedule.")
    lr_base_batch: Count | None = setting(
        None,
        "When set, the rate used is lr × (batch_size × accumulate × processes) / lr_base_batch.",
    )
    weight_decay: NotNegative = setting(0.05, "Decay of the weights that the model lets decay.")
    betas: tuple[Fraction, Fraction] | None = setting(None, "Adam's betas; null keeps the optimiser's own.")
    eps: Positive | None = setting(None, "Adam's epsilon; null keeps the optimiser's own.")
    momentum: Fraction = setting(0.9, "Momentum of optimisers that have one.")
    clip_grad: Positive | None = setting(None, "Largest norm of the gradient; null does not clip.")
    layer_decay: Share | None = setting(None, "Factor of the learning rate per layer from the head down.")
    accumulate: Count = setting(1, "Batches whose gradients make one update.")


class ScheduleConfig(Section):
    """How long, and the learning rate over that time.

    The length and the warm-up are each given in epochs or in updates (optimiser steps, "iterations" elsewhere). A
    schedule of so many updates may end inside an epoch, which is cut there, evaluated like any other, and the last.
    """

    name: Literal["cosine", "poly", "step", "constant"] = setting("cosine", "Shape after the warm-up.")
    epochs: Count | None = setting(30, "Passes over the training images; null where `updates` is given.")
    updates: Count | None = setting(None, "The length in updates instead; the last epoch is cut where they end.")
    cooldown_epochs: Natural = setting(
        0,
        "Further passes after the schedule's end, at the rate it ends with; a resumed run may raise it.",
        free=True,
    )
    warmup_epochs: NotNegative = setting(0.0, "Linear rise from warmup_lr at the start; part of the length.")
    warmup_updates: Natural = setting(0, "The warm-up in updates instead of epochs.")
    warmup_lr: NotNegative = setting(0.0, "Learning rate at the start of the warm-up.")
    warmup_prefix: bool = setting(
        False,
        "Cosine and poly begin after the warm-up and span the time left, instead of running on beneath it.",
    )
    min_lr: NotNegative = setting(0.0, "Learning rate at the end of cosine and poly.")
    power: Positive = setting(1.0, "Exponent of poly; 1 is a straight line.")
    drops: tuple[Positive, ...] = setting(
        (), "Where step lowers the rate: after so many epochs, or updates where the length is in updates."
    )
    drop_factor: OpenFraction = setting(0.1, "What each drop of step multiplies the rate by.")
    per: Literal["update", "epoch"] = setting("update", "Whether the rate moves at each update or each epoch.")
    patience: Count | None = setting(
        None, "End the run early when the primary score was not better for so many epochs; null never does.", free=True
    )
    epoch_lag: Natural = setting(
        0,
        "Epochs the schedule trails by. The official code has 1: its epochs 0 and 1 both run at the start.",
    )

    @property
    def unit(self) -> Literal["epochs", "updates"]:
        """What the length is given in."""
        return "epochs" if self.updates is None else "updates"

    @property
    def length(self) -> int:
        """So many of `unit`, without the cool-down."""
        return cast(int, getattr(self, self.unit))

    @model_validator(mode="before")
    @classmethod
    def _updates_replace_the_default(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("updates") is not None:
            return {"epochs": None, **values}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.updates is not None:
            raise ConfigError(
                "schedule.epochs and schedule.updates both say how long the run is; give one of them, and null for the "
                "other."
            )
        if self.epochs is None and self.updates is None:
            raise ConfigError("schedule.epochs or schedule.updates must say how long the run is; both are null.")
        if self.warmup_epochs and self.warmup_updates:
            raise ConfigError(
                "schedule.warmup_epochs and schedule.warmup_updates both say how long the warm-up is; give one of "
                "them, and 0 for the other."
            )
        if self.per == "epoch" and (self.updates is not None or self.warmup_updates):
            raise ConfigError("schedule.per epoch moves the rate once an epoch, so give its lengths in epochs.")
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        warmup, key = getattr(self, f"warmup_{self.unit}"), f"schedule.warmup_{self.unit}"
        if warmup > self.length:
            raise ConfigError(f"{key} ({warmup:g}) is longer than schedule.{self.unit} ({self.length}).")
        if self.warmup_prefix and self.name in ("cosine", "poly") and warmup == self.length:
            raise ConfigError(f"schedule.warmup_prefix leaves the {self.name} no {self.unit[:-1]}; shorten {key}.")
        return self

    @model_validator(mode="after")
    def _drops_belong_to_step(self) -> Self:
        if self.name != "step" and self.drops:
            raise ConfigError(f"schedule.drops are for the step schedule, and schedule.name is {self.name}.")
        if self.name == "step" and not self.drops:
            raise ConfigError(
                f"the step schedule needs schedule.drops, the {self.unit} after which the rate is lowered."
            )
        rising = all(sooner < later for sooner, later in itertools.pairwise((*self.drops, self.length)))
        if not rising:
            raise ConfigError(
                f"schedule.drops must rise and end before schedule.{self.unit} ({self.length}), got {list(self.drops)}."
            )
        return self


class EmaConfig(Section):
    """A moving average of the weights, evaluated and saved beside them."""

    decay: OpenFraction | None = setting(None, "Decay per update, for instance 0.9999; null keeps no average.")
    warmup: bool = setting(False, "Start from a small decay that grows towards `decay`, for short runs.")


class RunConfig(Section):
    """Where the run lives, what it runs on, and how it reports."""

    output: str = setting("runs", "Folder that holds the run folders.", free=True)
    name: str | None = setting(None, "Name of the run folder; null makes one of the model and the data.", free=True)
    resume: str | None = setting(None, "Continue this run: its folder, or a .ckpt file inside it.", free=True)
    overwrite: bool = setting(False, "Delete what an earlier run left in the run folder.", free=True)
    seed: Natural = setting(0, "Everything random is a function of this and of the position in the run.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps ...", free=True)
    amp: Literal["none", "bf16", "fp16"] = setting("none", "Autocast; fp16 scales the loss and needs a GPU.")
    log_every: Count = setting(10, "Updates between two step lines of log.jsonl.", free=True)
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = setting(
        (), "Programs that show the numbers as well, where installed: tensorboard, wandb, mlflow.", free=True
    )
    eval_every: Count = setting(1, "Epochs between two evaluations; the last epoch is always evaluated.")
    checkpoint_minutes: NotNegative = setting(
        5.0, "Minutes between two checkpoints inside an epoch; 0 writes one after every update.", free=True
    )
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "Of several processes each has the model (ddp) or a shard of it (fsdp); auto shards what a GPU could hardly "
        "hold.",
        free=True,
    )
    timeout: Positive = setting(
        600.0, "Seconds without progress after which one of several processes is ended.", free=True
    )

    @model_validator(mode="before")
    @classmethod
    def _one_name_is_a_list(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("log_to"), str):
            return {**values, "log_to": tuple(name.strip() for name in values["log_to"].split(","))}
        return values

    @model_validator(mode="after")
    def _resume_or_overwrite(self) -> Self:
        if self.resume and self.overwrite:
            raise ConfigError("run.resume continues a run and run.overwrite deletes it; give one of them.")
        return self


class _Start(Section):
    """What a configuration begins with."""

    task: str = setting(DEFAULT, "What is learned.")
    model: ModelConfig = Field(default_factory=ModelConfig)


@moved.attributes
class TrainConfig(TaskSettings, _Start):
    """A training run. Whatever makes one makes an instance of `config_class` of its task."""

    optim: OptimConfig = Field(default_factory=OptimConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema: EmaConfig = Field(default_factory=EmaConfig)
    run: RunConfig = Field(default_factory=RunConfig)

    @classmethod
    def kind_for(cls, values: Mapping[str, Any]) -> type[Self]:
        """The class of the task that ``values`` name. Raises ConfigError when there is no such task."""
        if cls is not TrainConfig:
            return cls
        task = values.get("task", DEFAULT)
        if not isinstance(task, str):
            raise ConfigError(f"task must be the name of a task ({', '.join(task_names())}), got {task!r}.")
        return cast("type[Self]", config_class(task))

    @property
    def settings(self) -> TaskSettings:
        """The task's own part, an instance of its settings' class."""
        kind = find_task(self.task).load_settings()
        return kind(**{name: getattr(self, name) for name in kind.model_fields})

    @property
    def batch_size(self) -> int:
        """``data.batch_size``, which is a number once a run is assembled. Raises ConfigError while it is ``auto``."""
        if self.data.batch_size == "auto":
            raise ConfigError("data.batch_size is still to be found (auto); a run that has begun knows its number.")
        return self.data.batch_size

    @property
    def run_folder(self) -> Path:
        """Where the run's files go: the resumed run's folder, else ``output/name``, and ``-foldN`` of a fold."""
        if self.run.resume:
            resumed = Path(self.run.resume)
            return resumed.parent if resumed.suffix == ".ckpt" else resumed
        name = self.run.name or f"{self.model.name}-{Path(self.data.path).name or 'run'}"
        fold = "" if self.data.fold is None else f"-fold{self.data.fold}"
        return Path(self.run.output) / f"{name}{fold}"

    @classmethod
    def load(cls, recipe: str | Path | None = None, overrides: Mapping[str, Any] | Iterable[str] = ()) -> TrainConfig:
        """Read a recipe and apply dotted overrides.

        Args:
            recipe: a YAML file, or the name of a recipe that comes with the package; None starts from the defaults.
            overrides: ``{"optim.lr": 3e-4}`` or ``["optim.lr=3e-4"]``, values of the second form in YAML.

        Raises ConfigError naming the file, the key and the nearest valid one.
        """
        changes = _override_items(overrides)
        values: dict[str, Any] = {}
        if recipe is not None:
            source = find_recipe(recipe)
            values = read_recipe(source)
            if "task" in changes:
                values["task"] = changes["task"]
            try:  # on its own, so that its faults are told with its name
                from_mapping(TrainConfig, values)
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from None
        return from_mapping(TrainConfig, _changed(values, changes))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from nested mappings, as strictly as ``load``."""
        return from_mapping(TrainConfig, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts and lists."""
        return to_mapping(self)

    def to_yaml(self) -> str:
        """The effective configuration, every setting with its value; ``load`` reads it back."""
        values = self.to_dict()
        values["run"].update(resume=None, overwrite=False)  # how this process was started, not what the run is
        return write_recipe(values)

    def replace(self, **overrides: Any) -> TrainConfig:
        """A copy with some settings changed: ``config.replace(**{"optim.lr": 1e-4})``."""
        return from_mapping(TrainConfig, _changed(self.to_dict(), overrides))

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so it has no place that a pickle could name.
        return TrainConfig.from_dict, (self.to_dict(),)


@functools.cache
def config_class(task: str) -> type[TrainConfig]:
    """The configuration of a run of ``task``: the general sections and the task's own beside them.

    Raises ConfigError when there is no such task, or when a section of it has the name of a general one.
    """
    settings = find_task(task).load_settings()
    taken = set(settings.model_fields) & (set(TrainConfig.model_fields) - set(TaskSettings.model_fields))
    if taken:
        raise ConfigError(
            f"the task {task!r} may not call its settings {', '.join(sorted(taken))}: every run has these."
        )
    # Declared once more, because of the ``data`` of two bases the first would win.
    own: dict[str, Any] = {name: (field.annotation, field) for name, field in settings.model_fields.items()}
    own["task"] = (Literal[task], setting(task, "What is learned."))
    bases: Any = (TrainConfig, settings)
    return cast("type[TrainConfig]", create_model("TrainConfig", __base__=bases, __doc__=TrainConfig.__doc__, **own))


def _override_items(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    items = {}
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"an override is written section.name=value, got {text!r}.")
        items[key.strip()] = parse_value(value, key)
    return items


def _changed(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(values)
    for key, value in overrides.items():
        _put(changed, key, value)
        other, nothing = _INSTEAD.get(key, (None, None))
        if other is not None and other not in overrides and value is not None:
            _put(changed, other, nothing)
    return changed


# Two ways to say one thing: an override of one replaces the other in the recipe.
_INSTEAD = {
    "schedule.epochs": ("schedule.updates", None),
    "schedule.updates": ("schedule.epochs", None),
    "schedule.warmup_epochs": ("schedule.warmup_updates", 0),
    "schedule.warmup_updates": ("schedule.warmup_epochs", 0.0),
}


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings. ``model.options.X`` reaches into the options."""
    *sections, name = key.split(".")
    for depth, section in enumerate(sections):
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            known = ", ".join(key for key in describe(TrainConfig) if key.startswith(sections[0]))
            raise ConfigError(f"{'.'.join(sections[: depth + 1])!r} holds a value, not settings. Settings: {known}.")
        values[section] = dict(inner)  # never change the caller's mapping
        values = values[section]
    values[name] = value
