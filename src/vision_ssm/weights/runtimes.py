"""What executes exported files: one class for each format.

| format   | named        | executed by                |
|----------|--------------|----------------------------|
| onnx     | NAME.onnx    | onnxruntime, on the CPU    |
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from vision_ssm.errors import CheckpointError, ConfigError

__all__ = ["EXTRA", "SUFFIXES", "OnnxRuntime", "Runtime", "needed", "open_runtime", "runtime_of"]

EXTRA = "the extra 'export' (pip install 'vision-ssm[export]')"


class Runtime(Protocol):
    """An opened file.

    Attributes:
        metadata: what the file says of itself, text by name.
    """

    metadata: dict[str, str]

    def __init__(self, path: Path) -> None:
        """Open a file. Raises CheckpointError where it cannot be, ConfigError where a package is missing."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the outputs for images float32 [B, C, H, W], in the file's order."""


class OnnxRuntime:
    """Runs a file in ONNX format with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # warnings tell of shapes that are merged, which is no news
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each of the runtime's own kinds derives from it alone
            raise CheckpointError(f"onnxruntime cannot open {str(path)!r}: {_first_line(error)}") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._input: str = self._session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        return _tensors(self._session.run(None, {self._input: images.numpy()}))


SUFFIXES: dict[str, type[Runtime]] = {".onnx": OnnxRuntime}
"""What opens files of a suffix."""


def runtime_of(path: str | Path) -> type[Runtime] | None:
    """Return what opens a file, by its name; None for what is no exported file."""
    return SUFFIXES.get(Path(path).suffix.lower())


def open_runtime(path: str | Path) -> Runtime:
    """Open an exported file.

    Raises:
        CheckpointError: there is no such file, it is none, or it is damaged; ConfigError: a package is missing.
    """
    kind = runtime_of(path)
    if kind is None:
        raise CheckpointError(f"an exported file ends in {' or '.join(SUFFIXES)}, got {str(path)!r}.")
    if not Path(path).exists():
        raise CheckpointError(f"cannot open exported file {str(path)!r}: No such file or directory.")
    return kind(Path(path))


def needed(package: str) -> ModuleType:
    """Import a package of the extra. Raises ConfigError where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"exported models need {EXTRA}: {package} is missing ({error}).") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tensors(arrays: Sequence[Any]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]
