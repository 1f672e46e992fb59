"""Which published files are on this machine already. No torch, and no network."""

from __future__ import annotations

import os
from pathlib import Path

from vision_ssm.models.variant import Weights

__all__ = ["downloaded"]


def downloaded(weights: Weights | None) -> Path | None:
    """Return where a published file was downloaded to, by this library or another program; None where it is not here.

    That is the cache of the Hugging Face hub, or, for files of a page, the folder that torch.hub keeps checkpoints in.
    """
    if weights is None:
        return None
    if not weights.hub:
        path = _torch_home() / "hub" / "checkpoints" / weights.file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    repository, _, commit = weights.hub.partition("@")
    found = try_to_load_from_cache(repository, weights.file, revision=commit or None)
    return Path(found) if isinstance(found, str) else None


def _torch_home() -> Path:
    """The folder that torch.hub uses, by the environment variables that it reads."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser()
