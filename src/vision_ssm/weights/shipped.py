"""The weights that travel inside the package, by name, and what counts as naming weights at all. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vision_ssm.errors import CheckpointError, suggestion

__all__ = ["DEFAULT", "WEIGHTS_SUFFIXES", "find_weights", "names_weights", "shipped_weights"]

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"

DEFAULT = "vim_nano_cifar10"
"""The shipped weights that are used where none are named."""

WEIGHTS_SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt"})


def shipped_weights() -> dict[str, Path]:
    """Names of the weights that come with the package, and their files."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def find_weights(weights: str | Path | None = None, *, models: Collection[str] = ()) -> Path:
    """The weights file that is meant: `DEFAULT` by None, a shipped file by its name, any other by its path.

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
    return path


def names_weights(text: str, *, model: str | None = None, models: Collection[str] = ()) -> bool:
    """Whether the first of several files on a command line is the weights rather than an image.

    It is when it is called like a weights file, names shipped weights or one of ``models``, or is one of two frequent
    slips, which opening then explains: such a name misspelt, or the folder of a run. With ``model``, weights are
    expected, so everything is that is not called like an image.
    """
    from vision_ssm.data.images import IMAGE_SUFFIXES

    path = Path(text)
    if path.suffix.lower() in WEIGHTS_SUFFIXES or text in shipped_weights():
        return True
    if path.is_dir():
        return any(path.glob("*.safetensors"))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return False
    name = text.partition(".")[0]  # a pretrained tag may follow
    if not path.exists() and (name in models or suggestion(name, [*shipped_weights(), *models])):
        return True
    return model is not None
