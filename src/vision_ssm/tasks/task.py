"""What a task is: everything that training, evaluation, prediction and the weights file ask of it.

    data -> open -> transform -> collate -> model -> losses            (training)
                                            model -> predict -> meter  (evaluation), results (prediction)

A task is a folder in this room, or another package's (see `vision_ssm.tasks.registry`). The rest of the library knows
tasks through this class only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vision_ssm.data.batches import Batch, Sample, Samples, Transform, stack
from vision_ssm.data.geo.raster import RasterFile
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.subset import Subset
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.settings import Section, from_mapping
from vision_ssm.tasks.exported import Form, Run, StandIn
from vision_ssm.tasks.meter import Critic, Maker, Meter
from vision_ssm.tasks.result import Result
from vision_ssm.tasks.scores import Score
from vision_ssm.tasks.settings import TaskSettings

__all__ = ["Meter", "Result", "Task"]


class Task(ABC):
    """One kind of problem: its data, model, losses, scores and results.

    Instances come about in two ways. Training makes one from its settings and shows it the training data (`prepare`);
    everything else gets one as it was trained from a weights file (`restore`).

    Attributes:
        name: as in the registry.
        Settings: of a run, see `vision_ssm.tasks.settings`.
        Options: what predictions and evaluations may be asked for, see `ask`; None for nothing.
        scores: what its meters report; the first decides which weights are best. They may depend on the data, so ask an
            instance that knows them.
        settings: of this instance.
        options: of class ``Options``: what was asked for; its defaults unless `ask` was called.
        counted: unit of what `tally` counts.
        native: images keep their own size in evaluation and prediction unless another one is asked for.
        sync_batch_norm: whether batch norms take their statistics over all processes (GPUs only).
        unused_parameters: whether a step may leave parameters without a gradient.
        batch_multiple: training batches must be a multiple of this.
        scenes: whether it takes scenes with all their bands (`vision_ssm.data.geo.raster.Raster`), not only pictures.
        repeats: how often an epoch's samples come each, see `vision_ssm.data.loader.epoch_order`.
        balanced: whether every group of `groups` comes equally often in training, instead of every sample once.
        pictured: what an evaluation is asked for whose `pictures` end a run.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[TaskSettings]]
    Options: ClassVar[type[Section] | None] = None
    scores: tuple[Score, ...]
    counted: str = "images"
    native: bool = False
    sync_batch_norm: bool = False
    unused_parameters: bool = False
    batch_multiple: int = 1
    scenes: bool = False
    repeats: int = 1
    balanced: bool = False
    pictured: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, settings: TaskSettings) -> None:
        if not isinstance(settings, self.Settings):
            raise ConfigError(
                f"the task {self.name} takes its settings, a {self.Settings.__name__}, got {settings!r}; it learns "
                "from data by prepare(samples), or is as it was trained by restore(record, settings)."
            )
        self.settings = settings
        self.options: Any = None if self.Options is None else self.Options()

    def ask(self, options: Mapping[str, Any]) -> None:
        """Set what `predict` and `results` are asked for.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        if self.Options is not None:
            self.options = from_mapping(self.Options, options)
        elif options:
            raise ConfigError(
                f"predictions of the task {self.name} have no option {next(iter(options))!r}; they have none."
            )

    @property
    def primary(self) -> Score:
        """The score by which the best weights are chosen."""
        return self.scores[0]

    # ------------------------------------------------------------------------------------------------------- data

    @abstractmethod
    def open(self, split: str) -> Samples:
        """Open ``train``, ``val``, ``test`` or ``all`` of the data that ``settings.data`` names.

        A task that knows its labels gives the targets as its model's outputs are numbered.

        Raises:
            DataError: missing, empty or unreadable data, an unknown name, or labels that the model does not know.
        """

    def open_unseen(self, split: str) -> Samples:
        """Open a split as `open` does, but without looking into any sample: all of them are going to be looked into."""
        return self.open(split)

    def own_splits(self) -> tuple[str, ...]:
        """Return the splits that the data of ``settings.data`` have themselves.

        Any other one that `open` gives is cut by ``val_fraction``: the same in every run of training, and no part of
        data that the model has not seen.

        Raises:
            DataError: as `open`.
        """
        return ("train", "val", "test")

    def adopt(self, samples: Samples) -> Samples:
        """Return samples that somebody else opened, their targets numbered as the model's outputs; as `open` does.

        Raises:
            DataError: they have labels that the model does not know.
        """
        return samples

    def subset(self, samples: Samples, positions: Sequence[int], found: str | None = None) -> Samples:
        """Return some of the samples of a split, as usable as all of them.

        The default keeps every other attribute as it is; a task whose samples have further entries per sample, or
        methods that take a position, says so here (see `vision_ssm.data.subset.Subset`).

        Args:
            samples: of `open`.
            positions: of those to keep.
            found: what they are, in a line for people; None makes one.
        """
        return Subset(samples, positions, found=found)

    def groups(self, samples: Samples) -> Sequence[int] | None:
        """Return a group per sample, such as its class, from what is known without reading any; None without groups.

        Folds are cut evenly within each group.
        """
        return None

    def remarks(self, train: Samples, val: Samples) -> list[str]:
        """Say in sentences what is odd about the data of a run, from what is known without reading them."""
        return []

    def prepare(self, train: Samples) -> None:  # noqa: B027 -- most tasks learn something from their data, not all
        """Take over from the training samples what model and weights file must know, such as names of classes."""

    def tally(self, samples: Samples, target: Any) -> Mapping[str, int]:
        """Say how much of which class a target of ``samples`` is, for `vision_ssm.analysis.check_data`."""
        return {}

    def faults(self, samples: Samples) -> Sequence[tuple[str, str]]:
        """Return what is wrong with the annotations of ``samples``, for `vision_ssm.analysis.check_data`.

        Pairs of a file and what is wrong in it; what shows only as a sample is decoded is left to that.
        """
        return ()

    def asides(self, samples: Samples) -> Sequence[tuple[str, str]]:
        """Return what is unusual in the annotations of ``samples`` and does no harm, as `faults` does."""
        return ()

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return how pictures in colour are prepared for ``model``: what it declares, changed by the settings.

        For images of other bands training puts their number, and what it has measured, into the place of the colours'.
        """
        from timm.data.config import resolve_model_data_config

        declared = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        # Mean and deviation are declared for three colours, whatever channels the model was built for.
        return Preprocessing.from_dict({**declared, "input_size": (3, *declared["input_size"][1:])})

    def sized(self, preprocessing: Preprocessing, size: int | tuple[int, int]) -> Preprocessing:
        """Return how images are prepared where another size is asked for than that of training.

        Args:
            preprocessing: as trained.
            size: a side, or (height, width).
        """
        return preprocessing.with_size(size)

    @abstractmethod
    def transform(self, preprocessing: Preprocessing, *, train: bool, native: bool = False) -> Transform:
        """Return what prepares one sample.

        Args:
            preprocessing: size, normalisation and interpolation.
            train: random changes included. They draw from `random`, `numpy.random` and torch's global generator,
                which the loader seeds for each sample.
            native: leave every image at its own size; not with ``train``.

        Loading processes may have to unpickle it, so no lambda.
        """

    def transform_rows(
        self, preprocessing: Preprocessing
    ) -> Callable[[NDArray[np.uint8] | NDArray[np.float32]], Tensor] | None:
        """Return what prepares some rows of an image at its own size, [r, W, C] -> float32 [C, r, W].

        For images that a model embeds as they are read. None, unless told otherwise, where ``transform`` with
        ``native`` does more than look at each pixel: such images are read whole.
        """
        return None

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Put samples together. Their targets are None where images are only predicted."""
        return stack(samples)

    # ------------------------------------------------------------------------------------------------------ model

    @abstractmethod
    def build(self, backbone: str, **options: Any) -> nn.Module:
        """Make the model with the right head for the data.

        Args:
            backbone: registered name, of this library or timm.
            options: of the backbone; ``pretrained`` among them.

        Raises:
            ConfigError: unknown name or option.
        """

    def backbone(self, model: nn.Module) -> nn.Module:
        """Return the part of a built model that published and other tasks' weights fit, and that gives features."""
        return model

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean training losses of a batch by name, scalars in float32; their sum is minimised.

        The names are the same for every batch, and nothing is kept from one call to the next: a checkpoint would not
        hold it. ``model`` may be wrapped: it is to be called, once, and not looked into.

        What is drawn at random here (mixup, drop path) comes from the global generators of `random`, `numpy.random` and
        torch, which the engine seeds before every call.
        """

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs of a model in evaluation mode, as `Meter.update` and `results` take them.

        Targets are not read, but by a task whose model is told them.
        """

    def predict_scene(
        self,
        model: nn.Module,
        scene: RasterFile,
        preprocessing: Preprocessing,
        stem: Path | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Result | None:
        """Predict a scene at its own size as it is read from its file, in memory that does not grow with it.

        None where a scene of this size is taken whole, by `predict`.

        Args:
            model: in evaluation mode.
            scene: open.
            preprocessing: as trained.
            stem: of the files that `Result.save` will be asked for, so that they may be written now; None for none.
            on_progress: called with (done, in all).
        """
        return None

    def at_once(self, model: nn.Module, size: tuple[int, int], *, scene: bool) -> tuple[nn.Module, tuple[int, int]]:
        """Return what takes the memory of predicting, and the most (H, W) it sees at once of an image of ``size``."""
        return self.backbone(model), size

    def wants_files(self) -> str:
        """Say which of the options makes files, which need a folder; empty where none does."""
        return ""

    def sample(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        labels: Sequence[int],
        seeds: Sequence[int],
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Image.Image]:
        """Make an RGB image of each of ``labels``, random only by its seed; ``on_step`` gets (steps done, in all)."""
        raise ConfigError(f"models of the task {self.name} make no images.")

    def exported(self, model: nn.Module) -> Form:
        """Return what is exported of ``model``. Raises ConfigError where models of this task cannot be."""
        raise ConfigError(f"models of the task {self.name} cannot be exported.")

    def stand_in(self, run: Run) -> StandIn:
        """Return what takes the place of an exported model, for `predict`. Raises ConfigError as `exported`."""
        raise ConfigError(f"models of the task {self.name} cannot be exported.")

    # ---------------------------------------------------------------------------------------------------- results

    def begin_evaluation(self, samples: Samples, critic: Callable[[str | None], Critic]) -> None:  # noqa: B027
        """Take over what an evaluation of ``samples`` needs to know; evaluations during training do not call it.

        ``critic`` opens other weights by file or name, None those that ship with the package.
        """

    def complete(self, meter: Meter, make: Maker) -> None:  # noqa: B027
        """Make what ``meter``, which has seen the images of an evaluation, wants to see beside them."""

    @abstractmethod
    def meter(self) -> Meter:
        """Return a fresh meter."""

    @abstractmethod
    def results(self, outputs: Any, batch: Batch) -> list[Result | None]:
        """Return what was found in each image of a batch; None where the outputs are not finite.

        Args:
            outputs: of `predict`.
            batch: whose ``sizes`` are those of the files.
        """

    def export(self, form: str, found: Sequence[tuple[str, Result]]) -> dict[str, str]:
        """Return what was found as another program reads it: the text of each file by its name.

        Args:
            form: one of the formats that the registry's entry names (`TaskInfo.formats`).
            found: the path of each image, and its result.

        Raises:
            ConfigError: there is no such format.
        """
        raise ConfigError(f"predictions of the task {self.name} have no format {form!r}.")

    def details(self, meter: Meter, samples: Samples) -> dict[str, Any]:
        """Return what of an evaluation of ``samples`` is worth keeping beside its scores, as plain JSON values.

        What the meter tells; a task adds what needs the samples, such as the files of the worst mistakes.
        """
        return meter.details()

    def pictures(self, meter: Meter, samples: Samples, folder: Path, *, title: str = "") -> list[Path]:
        """Draw an evaluation of ``samples`` into PNG files in ``folder`` and return them.

        ``title`` says what was evaluated. Only files that the registry's entry names (`TaskInfo.pictures`), so that a
        run folder knows what is a run's.

        Raises:
            DataError: a picture cannot be written.
        """
        return []

    # ----------------------------------------------------------------------------------------------- weights file

    def record(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON values; ``class_names`` holds the names of classes, if any.

        Of the settings a restored task gets the data section alone, with path, val_fraction and download: what else the
        trained model depends on belongs into the record.
        """
        return {}

    @classmethod
    def restore(cls, record: Mapping[str, Any], settings: TaskSettings) -> Self:
        """Return the task as it was trained.

        Args:
            record: of `record`, or of `published_record`.
            settings: the data to open next, and how.

        Raises:
            CheckpointError: the record is not one.
        """
        return cls(settings)

    @classmethod
    def published_record(cls, model: nn.Module) -> dict[str, Any]:
        """Return the record of a published model, which brings none.

        Raises:
            CheckpointError: no weights were published for this task.
        """
        raise CheckpointError(f"no weights were published for the task {cls.name}; name a weights file.")

    def knows(self) -> str:
        """Say in a few words what the trained model can tell, such as ``10 classes (cat, dog, ...)``."""
        return ""
