"""Reading pickles of tensors without running anything that is in them.

torch's restricted unpickler makes tensors and plain containers and refuses all other names. Training states hold a few
more that are harmless; each of these is read here as something that can do nothing (a path becomes a pure path, which
touches no file), so that no code of the module that the pickle names is ever called.
"""

from __future__ import annotations

import argparse
import datetime
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from vision_ssm.errors import CheckpointError

__all__ = ["read_pickle", "refuse_bombs"]

# An archive that unpacks to more than this many times its size, and is not small, was made to fill the memory. Weights
# themselves hardly shrink, and torch does not compress.
_GREATEST_RATIO, _SMALL = 20, 2**26


def read_pickle(path: Path, records: Sequence[type] = ()) -> Any:
    """Read what torch.save wrote, with all tensors on the CPU.

    Args:
        path: of the file.
        records: classes that may occur in it as well, dataclasses and named tuples.

    Raises:
        CheckpointError: not such a file, cut short, or one that asks for more than plain values; nothing was run.
    """
    refuse_bombs(path)
    try:
        file = path.open("rb")  # here, since torch would go by the name
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with file, torch.serialization.safe_globals([*_ADMITTED, *records]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's reader meets in damaged bytes
        # Its own text is not passed on: it tells how to load the file unsafely.
        wanted = _unsafe_globals(path, records)
        if wanted or (isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)):
            names = f": {', '.join(wanted)}" if wanted else ""
            raise CheckpointError(
                f"{path} is a pickle that needs more than tensors and plain values{names}. Unpickling such things can "
                "run code, so nothing of it was loaded. If you trust its author, convert it to safetensors yourself."
            ) from None
        raise CheckpointError(f"{path} is not a checkpoint that torch can read, or only a part of one") from error


def _unsafe_globals(path: Path, records: Sequence[type]) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    try:
        with path.open("rb") as file, torch.serialization.safe_globals([*_ADMITTED, *records]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001 -- as above; this only adds names to a message
        return []


def refuse_bombs(path: Path) -> None:
    """Raise CheckpointError for an archive that would unpack to far more than weights can shrink by."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return  # no archive, or a damaged one: the reader will say so
    if unpacked > max(_GREATEST_RATIO * path.stat().st_size, _SMALL):
        raise CheckpointError(
            f"{path} is a compressed archive of {path.stat().st_size:,} bytes that would unpack to {unpacked:,}; "
            "weights do not shrink like that. If it is genuine, save it again with torch.save, which does not compress."
        )


# --------------------------------------------------------------------------------------------------- the stand-ins
class _NumpyType:
    """In the place of numpy.dtype: plain numbers, texts and dates, no objects and no records."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[?biufcSUmM]\d*", code):
            raise pickle.UnpicklingError(f"Unsupported array type {code!r}")
        self.code, self.order, self.unit = code, "|", ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]
        if self.code[0] in "mM" and len(state) > 8 and state[8]:
            unit, count = state[8][1][:2]
            self.unit = f"[{int(count)}{unit if isinstance(unit, str) else unit.decode()}]"

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.code}{self.unit}")

    def __repr__(self) -> str:
        return f"dtype({self.code!r})"


class _Array(np.ndarray[Any, Any]):
    """In the place of an array: made from a checked type, shape and as many bytes as they need."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, columns_first, content = state
        dtype = kind.dtype()
        count = 1
        for side in shape:
            count *= side
        if min(shape, default=0) < 0 or len(content) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} has {len(content)} bytes")
        super().__setstate__((1, shape, dtype, bool(columns_first), bytes(content)))  # type: ignore[arg-type]  # bool is right


def _array(*_: Any) -> _Array:
    return _Array((0,), np.uint8)


def _number(kind: _NumpyType, content: bytes = b"") -> Any:
    dtype = kind.dtype()
    return np.frombuffer(content, dtype, count=1)[0].item() if dtype.itemsize else dtype.type().item()


def _no_bytes() -> bytes:
    return b""  # as old pickles spell it


def _mapping(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()  # a defaultdict; its items follow


def _in_words(name: str) -> Callable[..., str]:
    def words(*arguments: Any) -> str:
        return f"{name}({', '.join(str(argument)[:100] for argument in arguments if argument is not None)})"

    return words


class _Text(str):
    """In the place of a class derived from str."""


def _builtin(name: str) -> type:
    """A class that only has a name: what a state says of types, or what a defaultdict would make."""
    return type(name, (), {})


# Names beyond tensors and plain containers, and what is made in their place. yacs' configuration is a dictionary by
# nature and is read as one, so that yacs is not needed.
_STAND_INS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": argparse.Namespace,
    "yacs.config.CfgNode": OrderedDict,
    "collections.defaultdict": _mapping,
    "numpy.dtype": _NumpyType,
    "numpy.ndarray": _Array,
    **{
        f"numpy.{core}.multiarray.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (("scalar", _number), ("_reconstruct", _array))
    },
    **{
        f"pathlib.{place}{name}": kind
        for place in ("", "_local.")
        for name, kind in (
            ("PosixPath", PurePosixPath),
            ("PurePosixPath", PurePosixPath),
            ("WindowsPath", PureWindowsPath),
            ("PureWindowsPath", PureWindowsPath),
        )
    },
    **{f"datetime.{kind.__name__}": kind for kind in (datetime.datetime, datetime.date, datetime.time)},
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "torch.torch_version.TorchVersion": _Text,
    "builtins.slice": slice,
    "builtins.bytes": _no_bytes,
    # In words, since a range given to another constructor of the pickle could fill the memory.
    "builtins.range": _in_words("range"),
    "decimal.Decimal": _in_words("Decimal"),
    "fractions.Fraction": _in_words("Fraction"),
    **{f"builtins.{name}": _builtin(name) for name in ("bool", "dict", "float", "int", "list", "str", "tuple")},
}
_ADMITTED: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
