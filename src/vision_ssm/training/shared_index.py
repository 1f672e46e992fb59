"""The index of a state that many processes wrote, read without running anything that is in it.

torch.distributed.checkpoint keeps where each part of each tensor is in a pickle, `INDEX`, and reads it with the plain
unpickler, which calls whatever the file names. Here it may name the few classes that the index of tensors is made of.
Those of other values are not among them: torch would unpickle these values freely.
"""

from __future__ import annotations

import pickle
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from vision_ssm.errors import CheckpointError

__all__ = ["INDEX", "IndexedReader"]

INDEX = ".metadata"

_CLASSES = (
    _MEM_FORMAT_ENCODING,
    _StorageInfo,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
_ADMITTED: dict[tuple[str, str], Any] = {
    **{(each.__module__, each.__name__): each for each in _CLASSES},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: torch.strided,  # which all tensors of a state are
    # Of the folder while it was written. Pure paths touch no file, and each system can make both.
    **{(module, "PosixPath"): PurePosixPath for module in ("pathlib", "pathlib._local")},
    **{(module, "WindowsPath"): PureWindowsPath for module in ("pathlib", "pathlib._local")},
}


class IndexedReader(FileSystemReader):
    """Reads the tensors of a folder whose index is harmless.

    Raises CheckpointError when the index is damaged or names anything else, before any of that is called.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._index = _read(folder / INDEX)

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """Return the index."""
        meta = self._index.storage_meta or StorageMeta()
        meta.load_id = self.load_id
        self._index.storage_meta = meta
        return self._index


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self._path} asks for {module}.{name}, which the state of a run never has. Unpickling it could run "
                "code, so nothing of it was loaded; continue from a checkpoint that this library wrote."
            ) from None


def _read(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            index = _Unpickler(file, path).load()
    except CheckpointError:
        raise
    except Exception as error:  # whatever damaged bytes bring out
        raise CheckpointError(f"{path}: damaged, or not the index of a state.") from error
    if not isinstance(index, Metadata):
        raise CheckpointError(f"{path}: damaged, or not the index of a state.")
    return index
