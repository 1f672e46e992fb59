"""The weights file of this library: safetensors with everything that prediction needs in its metadata.

The metadata entry ``vision_ssm`` is JSON: the format number, the task, the model's name and options, the class names,
the preprocessing and the metrics. There is no pickle in it, and none is ever opened here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import CheckpointError, VisionSSMError
from vision_ssm.storage import whole_file

__all__ = ["FORMAT", "Loaded", "WeightsInfo", "load_weights", "read_info", "save_weights"]

FORMAT = 1
"""Number of the metadata layout; raised when older versions of the library could not read the file correctly."""

_KEY = "vision_ssm"


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file knows about its weights, besides the numbers.

    Attributes:
        model: registered name of the model.
        model_options: keyword arguments that rebuild it (``num_classes``, ``img_size``, ...).
        class_names: one name per output.
        preprocessing: how images were prepared for evaluation.
        metrics: such as ``{"top1": 0.97}``.
        val_fraction: share that training held out of a data folder without a val/ of its own, so that evaluation
            holds out the same images; None where the data had its own.
        task: what the model does.
        version: of the library that wrote the file.
    """

    model: str
    model_options: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: dict[str, Any] = field(default_factory=dict)
    val_fraction: float | None = None
    task: str = "classification"
    version: str = ""

    def to_json(self) -> str:
        """Return the metadata entry.

        Raises:
            CheckpointError: an option or metric is not a plain JSON value.
        """
        record = {
            "format": FORMAT,
            "task": self.task,
            "model": self.model,
            "model_options": self.model_options,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_dict(),
            "metrics": self.metrics,
            "val_fraction": self.val_fraction,
            "version": self.version,
        }
        try:
            return json.dumps(record)
        except TypeError as error:
            raise CheckpointError(f"the weights' description cannot be stored as JSON: {error}.") from error

    @classmethod
    def from_json(cls, text: str) -> WeightsInfo:
        """Parse the metadata entry.

        Raises:
            CheckpointError: it is damaged or written by a newer version; the message names no file.
        """
        try:
            record = json.loads(text)
            if record["format"] > FORMAT:
                raise CheckpointError(
                    f"it has format {record['format']}, written by vision-ssm {record.get('version', '?')}, and this "
                    f"version reads up to format {FORMAT}; upgrade vision-ssm"
                )
            return cls(
                model=str(record["model"]),
                model_options=dict(record["model_options"]),
                class_names=tuple(str(name) for name in record["class_names"]),
                preprocessing=Preprocessing.from_dict(record["preprocessing"]),
                metrics=dict(record["metrics"]),
                val_fraction=record["val_fraction"],
                task=str(record["task"]),
                version=str(record["version"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"its description is damaged ({type(error).__name__}: {error})") from error


class Loaded(NamedTuple):
    """A model in evaluation mode and what is known about it; what prediction and evaluation accept for a file."""

    model: nn.Module
    info: WeightsInfo


def save_weights(path: str | Path, model: nn.Module, *, info: WeightsInfo) -> None:
    """Write a model's state and its description, whole or not at all.

    Tensors that share memory are written out under each of their names, so that any reader can load them.

    Raises:
        CheckpointError: the file cannot be written (full disk, folder not writable); an older file at ``path`` stays.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    content = safetensors.torch.save(tensors, metadata={"format": "pt", _KEY: info.to_json()})
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
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"weights file {str(path)!r} is damaged: {error}.") from error
    model = _build(path, info)
    _require_fit(path, info, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return Loaded(model.eval().to(device), info)


def read_info(path: str | Path) -> WeightsInfo:
    """Read only the description in a weights file.

    Raises:
        CheckpointError: not a weights file of this library, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{str(path)!r} is a folder; give the weights file, such as {str(path / 'best.safetensors')!r}."
        )
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if not start:
            raise CheckpointError(f"weights file {str(path)!r} is empty (0 bytes).")
        # torch.save writes a zip archive or, long ago, a bare pickle. Neither is opened here.
        if start.startswith((b"PK\x03\x04", b"\x80")):
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
    if _KEY not in metadata:
        raise CheckpointError(
            f"{str(path)!r} is a safetensors file without this library's description (model, class names, "
            "preprocessing); load it as a checkpoint with --model NAME (in Python: model=NAME)."
        )
    try:
        return WeightsInfo.from_json(metadata[_KEY])
    except CheckpointError as error:
        raise CheckpointError(f"cannot use weights file {str(path)!r}: {error}.") from error


def _build(path: str | Path, info: WeightsInfo) -> nn.Module:
    from vision_ssm.models.registry import create_model

    try:
        return create_model(info.model, **info.model_options)
    except (VisionSSMError, TypeError) as error:
        raise CheckpointError(f"weights file {str(path)!r} describes a model that cannot be built: {error}") from error


def _require_fit(path: str | Path, info: WeightsInfo, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"weights file {str(path)!r} does not fit its own model {info.model!r}: {', '.join(problems[:5])}{more}; "
            "the file is damaged, or comes from an incompatible version"
            f"{f' ({info.version})' if info.version else ''}."
        )
