"""What kind of file a path leads to, by its first bytes; the name is only what somebody called it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from vision_ssm.errors import CheckpointError
from vision_ssm.storage import what_else

__all__ = ["Kind", "kind_of"]

Kind = Literal["safetensors", "torch", "pickle", "unknown"]
"""``torch``: the zip archive that torch.save writes; ``pickle``: bare, as torch.save wrote long ago."""

_LONGEST_HEADER = 100_000_000  # of safetensors, by its own rule
_TEXT_BEFORE = b"\xef\xbb\xbf \t\r\n"

# What is fetched or given in place of weights: how it begins, and what to do.
_OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`, or "
    "download the file where it is stored",
    b"<": "is a web page, not weights: the download met an error or a page to sign in; download the file again",
    b"\x1f\x8b": "is a gzip archive; unpack it and give the file inside",
    b"\xfd7zXZ": "is an xz archive; unpack it and give the file inside",
    b"7z\xbc\xaf": "is a 7z archive; unpack it and give the file inside",
    b"\x89HDF": "is an HDF5 file, which is not read here; give a .safetensors or PyTorch file",
    b"GGUF": "is a GGUF file, which is not read here; give a .safetensors or PyTorch file",
}


def kind_of(path: str | Path) -> Kind:
    """Tell what a file is from how it begins.

    Raises:
        CheckpointError: there is no file, only a folder or a pipe, or it is known to be something else than weights.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path's, it lets the opening say what is the matter with a strange name
        raise CheckpointError(f"{path} is a folder, not a file")
    other = what_else(path)
    if other is not None:
        raise CheckpointError(f"{path} is {other}, not a file; weights are read from files only")
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    # The length that a safetensors file begins with may look like the start of any other; what follows it does not.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        return "torch"
    if start.startswith(b"\x80"):
        return "pickle"
    text = start.lstrip(_TEXT_BEFORE)
    for beginning, what in _OTHERS.items():
        if text.startswith(beginning):
            raise CheckpointError(f"{path} {what}")
    return "unknown"
