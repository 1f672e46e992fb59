"""The weights file of this library: safetensors with everything that prediction needs in its metadata.

The metadata entry ``vision_ssm`` is JSON: the format number, the task and its record (class names, ...), the model's
name and options, the preprocessing and the metrics. There is no pickle in it, and none is ever opened here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.checkpoints.content import kind_of
from vision_ssm.checkpoints.tensors import wrong_kinds
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, ConfigError, VisionSSMError
from vision_ssm.models.described import check_described
from vision_ssm.models.in_words import in_words
from vision_ssm.settings import from_mapping
from vision_ssm.storage import whole_file
from vision_ssm.tasks.registry import TaskInfo, find_task
from vision_ssm.tasks.task import Task
from vision_ssm.weights.shipped import nearest_weights

__all__ = [
    "DESCRIPTION",
    "FORMAT",
    "Loaded",
    "WeightsInfo",
    "load_weights",
    "read_info",
    "require_command",
    "restored_task",
    "save_weights",
]

FORMAT = 2
"""Number of the metadata layout; raised when older versions of the library could not read the file correctly.

2: what the task recorded is under ``record``. In 1 every file was a classifier's, with ``class_names`` beside ``task``.
"""

DESCRIPTION = "vision_ssm"
"""Name of the metadata entry."""

_CLASS_NAMES = "weights.files.WeightsInfo(class_names)"


@moved.arguments
@dataclass(frozen=True, repr=False)
class WeightsInfo:
    """What a weights file knows about its weights, besides the numbers.

    Attributes:
        model: registered name of the model.
        model_options: keyword arguments that rebuild it (``img_size``, ...), beside what the task adds.
        task: what the model does, by its name in `vision_ssm.tasks.registry`.
        record: what the task needs to be restored, such as class names; see `vision_ssm.tasks.task.Task.record`.
        preprocessing: how images were prepared for evaluation.
        metrics: such as ``{"top1": 0.97}``.
        val_fraction: share that training held out of a data folder without a val/ of its own, so that evaluation
            holds out the same images; None where the data had its own.
        trained_on: fingerprint of the training images (with ``fold``, of all of them), by which evaluation knows the
            data of training again; empty where nobody can tell.
        version: of the library that wrote the file.
        fold: (which, of how many) folds training held out; None where the data were not cut into folds.
        source: the file, or the name, that the weights came from; not stored.
    """

    model: str
    model_options: dict[str, Any]
    task: str
    record: dict[str, Any]
    preprocessing: Preprocessing
    metrics: dict[str, Any] = field(default_factory=dict)
    val_fraction: float | None = None
    trained_on: str = ""
    version: str = ""
    fold: tuple[int, int] | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.task, str):  # names of classes once stood there
            raise TypeError(f"task must be the name of a task, got {self.task!r}. {moved.told(_CLASS_NAMES)}")

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.model_options.items())
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        scores = "".join(f", {name}: {value}" for name, value in self.metrics.items())
        return f"WeightsInfo({self.source or 'unsaved'}: {self.model}{options} for {self.task}{classes}{scores})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that the model knows, in its order; empty for a task without classes."""
        return tuple(self.record.get("class_names", ()))

    def to_json(self) -> str:
        """Return the metadata entry.

        Raises:
            CheckpointError: an option, a metric or the record is not a plain JSON value.
        """
        fields = {
            "format": FORMAT,
            "task": self.task,
            "record": self.record,
            "model": self.model,
            "model_options": self.model_options,
            "preprocessing": self.preprocessing.to_dict(),
            "metrics": self.metrics,
            "val_fraction": self.val_fraction,
            "trained_on": self.trained_on,
            "fold": self.fold,
            "version": self.version,
        }
        try:
            return json.dumps(fields)
        except TypeError as error:
            raise CheckpointError(f"the weights' description cannot be stored as JSON: {error}.") from error

    @classmethod
    def from_json(cls, text: str) -> WeightsInfo:
        """Parse the metadata entry.

        Raises:
            CheckpointError: it is damaged or written by a newer version; the message names no file.
        """
        try:
            fields = json.loads(text)
            if type(fields["format"]) is not int or fields["format"] < 1:
                raise ValueError(f"format is {fields['format']!r}")
            if fields["format"] > FORMAT:
                raise CheckpointError(
                    f"it has format {fields['format']}, written by vision-ssm {fields.get('version', '?')}, and this "
                    f"version reads up to format {FORMAT}; upgrade vision-ssm"
                )
            if fields["format"] == 1:
                fields["record"] = {"class_names": [str(name) for name in fields["class_names"]]}
            return cls(
                model=str(fields["model"]),
                model_options=dict(fields["model_options"]),
                task=str(fields["task"]),
                record=dict(fields["record"]),
                preprocessing=Preprocessing.from_dict(fields["preprocessing"]),
                metrics={name: _metric(name, value) for name, value in fields["metrics"].items()},
                val_fraction=_share(fields["val_fraction"]),
                trained_on=str(fields.get("trained_on", "")),  # files of before do not say it
                version=str(fields["version"]),
                fold=_fold(fields.get("fold")),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"its description is damaged ({type(error).__name__}: {error})") from error


def _metric(name: str, value: object) -> object:
    if value is not None and not isinstance(value, int | float | str):
        raise TypeError(f"the metric {name} is a {type(value).__name__}")
    return value


def _share(value: object) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1):
        return value
    raise ValueError(f"val_fraction must be in [0, 1), got {value!r}")


def _fold(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and [type(part) for part in value] == [int, int] and 0 <= value[0] < value[1]:
        return value[0], value[1]
    raise ValueError(f"fold must be [which, of how many], got {value!r}")


class Loaded(NamedTuple):
    """A model in evaluation mode and what is known about it; what prediction and evaluation accept for a file."""

    model: nn.Module
    info: WeightsInfo

    def __repr__(self) -> str:
        return f"Loaded({in_words(self.model)}; {self.info!r})"

    def task(self, **data: Any) -> Task:
        """Return the task as the model was trained for it.

        Args:
            data: settings of the data section to open next, such as ``path``.

        Raises:
            CheckpointError: the task is not installed, or the record does not fit it.
        """
        return restored_task(self.info, **data)


def restored_task(info: WeightsInfo, **data: Any) -> Task:
    """Return the task that weights were trained for; arguments and errors as for `Loaded.task`."""
    entry = _entry(info)
    if info.val_fraction is not None:
        recorded = {"val_fraction": info.val_fraction}
        try:  # by itself: what is wrong with ``data`` is not the file's fault
            from_mapping(entry.load_settings(), {"data": recorded})
        except ConfigError as error:
            raise CheckpointError(f"cannot use weights {info.source or info.model!r}: {error}") from error
        data = recorded | data
    settings = from_mapping(entry.load_settings(), {"data": data})
    try:
        task = entry.load().restore(info.record, settings)
    except CheckpointError as error:
        raise CheckpointError(f"cannot use weights {info.source or info.model!r}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a record that is not what the task wrote
        raise CheckpointError(
            f"cannot use weights {info.source or info.model!r}: the record of the task {info.task} is damaged "
            f"({type(error).__name__}: {error})."
        ) from error
    return task


def require_command(info: WeightsInfo, command: str) -> None:
    """Raise CheckpointError, naming the commands that do, unless ``command`` can use weights of this task."""
    able = _entry(info).commands
    if command not in able:
        others = " or ".join(f"`vision-ssm {name}`" for name in able)
        raise CheckpointError(
            f"{info.source or info.model} holds weights of the task {info.task}, which {command} cannot use; "
            f"use {others}."
        )


def _entry(info: WeightsInfo) -> TaskInfo:
    try:
        return find_task(info.task)
    except ConfigError as error:
        raise CheckpointError(
            f"cannot use weights {info.source or info.model!r} of a task that is not installed: {error}"
        ) from error


def save_weights(path: str | Path, model: nn.Module | Mapping[str, Tensor], *, info: WeightsInfo) -> None:
    """Write a model, or its state, and its description, whole or not at all.

    Tensors that share memory are written out under each of their names, so that any reader can load them.

    Raises:
        CheckpointError: the file cannot be written (full disk, folder not writable); an older file at ``path`` stays.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors, metadata={"format": "pt", DESCRIPTION: info.to_json()})
    with whole_file(path, error=CheckpointError) as part:
        part.write_bytes(content)


def load_weights(path: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """Rebuild the model of a weights file, with its weights, in evaluation mode.

    Returns:
        ``(model, info)``.

    Raises:
        CheckpointError: not a weights file of this library, damaged, an unknown model, or tensors that do not fit.
    """
    info = read_info(path)
    _check_described(path, info)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"weights file {str(path)!r} is damaged: {error}.") from error
    model = _build(path, info)
    _require_fit(path, info, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return Loaded(model.eval().to(device), info)


def _check_described(path: str | Path, info: WeightsInfo) -> None:
    """Make sure that the model which the file describes is one, and has its tensors, before memory is taken for it."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Of each tensor only the shape counts here; on the meta device none has memory.
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        found = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"weights file {str(path)!r} is damaged: {error}.") from error
    try:
        check_described(info.model, info.model_options, len(found))
    except VisionSSMError as error:
        raise _cannot_be_built(path, error) from error
    try:
        with torch.device("meta"):
            model = _build(path, info)
    except CheckpointError as error:
        if isinstance(error.__cause__, RuntimeError) and "meta" in str(error.__cause__).lower():
            return  # another package's task that needs numbers to build its model: compared once it is built
        raise
    _require_fit(path, info, model.state_dict(), found)


def read_info(path: str | Path) -> WeightsInfo:
    """Read only the description in a weights file.

    Raises:
        CheckpointError: not a weights file of this library, or damaged.
    """
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        near = nearest_weights(path)
        raise CheckpointError(f"cannot open weights file {str(path)!r}: {reason}.{near}") from error
    if path.is_dir():
        raise CheckpointError(
            f"{str(path)!r} is a folder; give the weights file, such as {str(path / 'best.safetensors')!r}."
        )
    try:
        if kind_of(path) in ("torch", "pickle"):  # neither is opened here
            raise CheckpointError(
                f"{str(path)!r} is a PyTorch checkpoint (pickle), not a weights file of this library, so it does not "
                "say which model it belongs to; published checkpoints are loaded with --model NAME "
                "(in Python: model=NAME)."
            )
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except OSError as error:
        raise CheckpointError(f"cannot open weights file {str(path)!r}: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{str(path)!r} is not a safetensors file, or it is truncated ({error}); expected the .safetensors file "
            "that `vision-ssm train` writes."
        ) from error
    if DESCRIPTION not in metadata:
        raise CheckpointError(
            f"{str(path)!r} is a safetensors file without this library's description (model, class names, "
            "preprocessing); load it as a checkpoint with --model NAME (in Python: model=NAME)."
        )
    try:
        return dataclasses.replace(WeightsInfo.from_json(metadata[DESCRIPTION]), source=str(path))
    except CheckpointError as error:
        raise CheckpointError(f"cannot use weights file {str(path)!r}: {error}.") from error


def _build(path: str | Path, info: WeightsInfo) -> nn.Module:
    task = restored_task(info)
    try:
        return task.build(info.model, **info.model_options)
    except Exception as error:  # a model may answer options that do not go together with anything
        raise _cannot_be_built(path, error) from error


def _cannot_be_built(path: str | Path, error: Exception) -> CheckpointError:
    reason = str(error) if isinstance(error, VisionSSMError) else f"{type(error).__name__}: {error}"
    return CheckpointError(f"weights file {str(path)!r} describes a model that cannot be built: {reason}")


def _require_fit(path: str | Path, info: WeightsInfo, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems += wrong_kinds(expected, {name: tensor for name, tensor in found.items() if not tensor.is_meta})
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"weights file {str(path)!r} does not fit its own model {info.model!r}: {', '.join(problems[:5])}{more}; "
            "the file is damaged, or comes from an incompatible version"
            f"{f' ({info.version})' if info.version else ''}."
        )
