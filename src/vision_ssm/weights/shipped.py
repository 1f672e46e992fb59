"""What counts as naming weights: those that travel inside the package, files, and folders of runs. No torch here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from pathlib import Path

from vision_ssm.errors import CheckpointError, suggestion

__all__ = [
    "DEFAULT",
    "WEIGHTS_SUFFIXES",
    "best_of_run",
    "called",
    "find_weights",
    "names_weights",
    "nearest_weights",
    "pair_in",
    "shipped_weights",
]

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"

DEFAULT = "vim_nano_cifar10"
"""The shipped weights that are used where none are named."""

WEIGHTS_SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".xml", ".pt2"})

BEST = "best.safetensors"
"""What a run calls its best weights."""


def shipped_weights() -> dict[str, Path]:
    """Names of the weights that come with the package, and their files."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def called(source: str) -> str:
    """The name of shipped weights, for their file; what any other weights came from as it is."""
    return next((name for name, path in shipped_weights().items() if str(path) == source), source)


def find_weights(weights: str | Path | None = None, *, models: Collection[str] = ()) -> Path:
    """The weights file that is meant: `DEFAULT` by None, a shipped file by its name, any other by its path or its run.

    A name goes before a file of the same name; for that file write ``./NAME``. Whether the file can be used shows when
    it is opened. ``models`` are further names that would have been right, for the message.

    Raises:
        CheckpointError: neither a file nor a shipped name, or the package was installed without its weights.
    """
    shipped = shipped_weights()
    if weights is None:
        if DEFAULT not in shipped:
            raise CheckpointError(
                f"no weights were named, and those that ship with vision-ssm ({DEFAULT}) are missing from this "
                f"installation: {str(FOLDER)!r} lacks them; install vision-ssm again, or name a weights file."
            )
        return shipped[DEFAULT]
    if str(weights) in shipped:
        return shipped[str(weights)]
    path = Path(weights)
    if not path.suffix and len(path.parts) == 1 and not path.exists():
        known = ", ".join(shipped) or "none in this installation"
        raise CheckpointError(
            f"cannot open weights file {str(weights)!r}: No such file or directory; weights that ship with vision-ssm: "
            f"{known}.{suggestion(str(weights), [*shipped, *models])}"
        )
    return best_of_run(path)


def best_of_run(path: str | Path) -> Path:
    """The best weights of a run by its folder; any other path is returned as it is."""
    best = Path(path, BEST)
    return best if os.path.isfile(best) else Path(path)


def pair_in(folder: str | Path) -> Path | None:
    """NAME.xml in a folder whose only weights are one pair of OpenVINO's, NAME.xml and NAME.bin; None for any other."""
    folder = Path(folder)
    if str(folder) in shipped_weights() or not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    described = list(folder.glob("*.xml"))
    return described[0] if len(described) == 1 and described[0].with_suffix(".bin").is_file() else None


def nearest_weights(path: Path) -> str:
    """Return ``" Did you mean 'x'?"`` for the weights file or run folder of the nearest name, or ``""`` for none."""
    found = [entry for entry in _beside(path) if entry.suffix in WEIGHTS_SUFFIXES or os.path.isfile(entry / BEST)]
    whole = [entry.name for entry in found if entry.stem == path.name]
    near = whole or difflib.get_close_matches(path.name, [entry.name for entry in found])
    return f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""


def names_weights(text: str, *, model: str | None = None, models: Collection[str] = ()) -> bool:
    """Whether one of several files on a command line is the weights rather than an image.

    It is when it is called like a weights file, names shipped weights or one of ``models``, is the folder of a run or
    of one pair of OpenVINO's, or is any of these misspelt, which opening then explains. With ``model``, weights are
    expected, so everything is that is not called like an image.
    """
    from vision_ssm.data.images import IMAGE_SUFFIXES

    path = Path(text)
    if path.suffix.lower() in WEIGHTS_SUFFIXES or text in shipped_weights():
        return True
    if path.is_dir():
        return any(path.glob("*.safetensors")) or pair_in(path) is not None
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return False
    name = text.partition(".")[0]  # a pretrained tag may follow
    if not path.exists() and (
        name in models
        or suggestion(name, [*shipped_weights(), *models])
        or suggestion(path.suffix.lower(), WEIGHTS_SUFFIXES)
        or nearest_weights(path)
    ):
        return True
    return model is not None


def _beside(path: Path) -> list[Path]:
    try:
        return sorted(path.parent.iterdir())
    except (OSError, ValueError):  # there is no such folder, or it may not be read: nothing to suggest
        return []
