"""Fetching published files from the Hugging Face hub, with one clear error when that is impossible."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants

from vision_ssm.errors import CheckpointError

__all__ = ["download"]


def download(repo: str, filename: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the local path of a file of a hub repository, downloading it unless it is in the cache.

    Raises:
        CheckpointError: offline and not cached, or the hub refuses; names the repository, the file and the way out.
    """
    reachable = _reachable()
    try:
        found = huggingface_hub.hf_hub_download(
            repo, filename, revision=revision, cache_dir=cache_dir, local_files_only=not reachable
        )
    except OSError as error:  # every hub error is one, "not in the cache" included
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = told if reachable else "there is no network, and the cache does not hold it"
        raise CheckpointError(
            f"could not get {filename} from huggingface.co/{repo}{f' at {revision}' if revision else ''} ({reason}). "
            f"Download the file where there is a network and give its path: "
            f"pretrained_cfg_overlay=dict(file='{filename}') in Python, --checkpoint {filename} on the command line."
        ) from None
    return Path(found)


def _reachable() -> bool:
    """Tell at once what the hub client finds out after half a minute of retries: whether there is a network at all."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True
