"""Models that were exported: what their files say of themselves, and running them in the place of the model.

A file holds two entries in its metadata: ``vision_ssm``, the description that the weights had
(`vision_ssm.weights.files.WeightsInfo`), and ``vision_ssm_export``, an `ExportRecord`. The network itself is not built:
the runtime of the file's format executes it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_ssm.device import choose_device
from vision_ssm.errors import CheckpointError, ConfigError, ShapeError
from vision_ssm.weights.files import DESCRIPTION, Loaded, WeightsInfo, restored_task
from vision_ssm.weights.runtimes import ENTRIES, Runtime, open_runtime, runtime_of

__all__ = ["RECORD", "ExportRecord", "ExportedFile", "is_exported", "open_exported", "read_exported", "require_cpu"]

_, RECORD = ENTRIES
"""Name of the metadata entry of an `ExportRecord`."""

FORMAT = 1
"""Number of its layout."""


@dataclass(frozen=True)
class ExportRecord:
    """How a file was exported, and what came of its check.

    Attributes:
        format: of the file: see `vision_ssm.weights.runtimes`.
        target: for whom it was written, see `vision_ssm.exporting.export`.
        outputs: names of the tensors that it yields; the first decides.
        size: (height, width) of its images.
        dynamic: what it leaves open, of ``batch`` and ``size``; otherwise it takes one image of that size.
        step: heights and widths are whole multiples of it, from two on, where the size is open.
        precision: of its numbers, see `vision_ssm.exporting.settings.PRECISIONS`.
        versions: of the packages that wrote and checked it.
        check: see `vision_ssm.exporting.checking.Check.to_dict`; empty before it was checked.
        quantised: what INT8 did to the score, see `vision_ssm.exporting.quantising.Quantised`; empty otherwise.
    """

    format: str
    target: str
    outputs: tuple[str, ...]
    size: tuple[int, int]
    dynamic: tuple[str, ...] = ()
    step: int = 1
    precision: str = "float32"
    versions: Mapping[str, str] = field(default_factory=dict)
    check: Mapping[str, Any] = field(default_factory=dict)
    quantised: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the metadata entry."""
        return json.dumps({"layout": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ExportRecord:
        """Parse the metadata entry.

        Raises:
            CheckpointError: it is damaged or written by a newer version; the message names no file.
        """
        try:
            fields = json.loads(text)
            layout = fields.pop("layout")
            if layout != FORMAT:
                raise CheckpointError(f"its export record has layout {layout!r}; this version reads {FORMAT}")
            height, width = (int(side) for side in fields.pop("size"))
            outputs, dynamic = (tuple(str(word) for word in fields.pop(name)) for name in ("outputs", "dynamic"))
            return cls(outputs=outputs, size=(height, width), dynamic=dynamic, **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"its export record is damaged ({type(error).__name__}: {error})") from error

    def check_size(self, height: int, width: int) -> None:
        """Raise ShapeError for images that the file does not take."""
        if "size" not in self.dynamic and (height, width) != self.size:
            raise ShapeError(
                f"this file was exported for images of {self.size[0]}x{self.size[1]}, got {height}x{width}; resize "
                "them (--img-size, for maps --window), or export it again with --dynamic size"
            )
        if "size" in self.dynamic and (height % self.step or width % self.step or min(height, width) < 2 * self.step):
            raise ShapeError(
                f"this file takes images whose sides are multiples of {self.step}, from {2 * self.step} on, got "
                f"{height}x{width}"
            )


@dataclass(frozen=True)
class ExportedFile:
    """An exported model and what it says of itself. Called, it runs; see `vision_ssm.tasks.exported.Run`."""

    info: WeightsInfo
    record: ExportRecord
    runtime: Runtime

    @property
    def size(self) -> tuple[int, int] | None:
        """See `vision_ssm.tasks.exported.Run`."""
        return None if "size" in self.record.dynamic else self.record.size

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run images float32 [B, C, H, W].

        Raises:
            ShapeError: of another size than the file takes, or of other channels.
        """
        channels = self.info.preprocessing.input_size[0]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ShapeError(f"expected images [B, {channels}, H, W], got {list(images.shape)}")
        self.record.check_size(int(images.shape[2]), int(images.shape[3]))
        parts = torch.split(images, len(images) if "batch" in self.record.dynamic else 1)
        found = [self.runtime(part) for part in parts]
        joined = found[0] if len(found) == 1 else [torch.cat(parts) for parts in zip(*found, strict=True)]
        return dict(zip(self.record.outputs, joined, strict=True))


def is_exported(path: str | Path) -> bool:
    """Tell by its name whether a file, or a folder, is an exported model."""
    return runtime_of(path) is not None


def read_exported(path: str | Path) -> ExportedFile:
    """Open an exported file.

    Raises:
        CheckpointError: it cannot be opened, was not exported by this library, or its description is damaged;
        ConfigError: the package that runs it is missing.
    """
    runtime = open_runtime(path)
    try:
        described, recorded = runtime.metadata[DESCRIPTION], runtime.metadata[RECORD]
    except KeyError as missing:
        raise CheckpointError(
            f"{str(path)!r} does not say what it is (no {missing} in its metadata): it was not exported by "
            "`vision-ssm export`."
        ) from missing
    try:
        info = dataclasses.replace(WeightsInfo.from_json(described), source=str(path))
        return ExportedFile(info, ExportRecord.from_json(recorded), runtime)
    except CheckpointError as error:
        raise CheckpointError(f"cannot use {str(path)!r}: {error}.") from error


def require_cpu(device: str | torch.device | None) -> None:
    """Raise ConfigError where another device is asked for than the CPU, on which exported files run here."""
    if device not in (None, "auto") and choose_device(device).type != "cpu":
        raise ConfigError(f"exported models run on the CPU here, got device {str(device)!r}.")


def open_exported(path: str | Path, device: str | torch.device | None = None) -> Loaded:
    """Return what takes the place of the model that was exported to a file, and what is known about it.

    Raises:
        CheckpointError, ConfigError: as `read_exported`; ConfigError: as `require_cpu`.
    """
    require_cpu(device)
    file = read_exported(path)
    return Loaded(restored_task(file.info).stand_in(file).eval(), file.info)
