"""Fetching published files from the Hugging Face hub or a release page, with one clear error when that fails."""

from __future__ import annotations

import socket
import sys
import urllib.request
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import torch
from huggingface_hub import constants

from vision_ssm.errors import NotFetchedError

__all__ = ["download", "download_url"]


def download(repo: str, filename: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the local path of a file of a hub repository, downloading it unless it is in the cache.

    A ``filename`` with ``*`` is a pattern for the one file whose name it fits, in lower case.

    Raises:
        NotFetchedError: offline and not cached, the hub refuses, or a pattern fits no file or several; names the
            repository, the file and what to do.
    """
    reachable = _reachable()
    place = f"huggingface.co/{repo}{f' at {revision}' if revision else ''}"
    wanted, file = (f"a file like {filename}", "PATH") if "*" in filename else (filename, filename)
    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": not reachable}
    try:
        names = _names(repo, where) if "*" in filename else [filename]
        fitting = [name for name in names if name == filename or fnmatchcase(name.lower(), filename)]
        if len(fitting) != 1:
            told = f"{len(fitting)} of its files fit that: {', '.join(fitting or names)}"
            raise NotFetchedError(f"could not get {wanted} from {place} ({told}).", file=file)
        found = huggingface_hub.hf_hub_download(repo, fitting[0], **where)
    except OSError as error:  # every hub error is one, "not in the cache" included
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = told if reachable else "there is no network, and the cache does not hold it"
        raise NotFetchedError(f"could not get {wanted} from {place} ({reason}).", file=file) from None
    return Path(found)


def _names(repo: str, where: dict[str, Any]) -> list[str]:
    """Return the names of a repository's files: all of them, or those in the cache without a network."""
    if not where["local_files_only"]:
        return list(huggingface_hub.list_repo_files(repo, revision=where["revision"]))
    folder = Path(huggingface_hub.snapshot_download(repo, **where))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def download_url(url: str, cache_dir: str | Path | None = None) -> Path:
    """Return the local path of a file on the web, downloading it unless it is in the cache.

    Args:
        url: of a release file; its last part, unquoted, is the name in the cache.
        cache_dir: folder of downloaded files; None for the one that torch.hub uses.

    Raises:
        NotFetchedError: offline and not cached, or the server refuses; names the file, the page and what to do.
    """
    address = urlsplit(url)
    filename = unquote(address.path).rpartition("/")[2]
    path = Path(cache_dir or Path(torch.hub.get_dir()) / "checkpoints") / filename
    if path.is_file():
        return path
    reachable = _reachable(address.hostname or "")
    try:
        if not reachable:
            raise OSError
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    except OSError as error:  # urllib's are all of this kind
        reason = str(error) if reachable else f"there is no network, and {path.parent} does not hold it"
        told = f"could not get {filename} from {url.rpartition('/')[0]} ({reason})."
        raise NotFetchedError(told, file=filename, folder=str(path.parent)) from None
    return path


def _reachable(host: str | None = urlsplit(constants.ENDPOINT).hostname) -> bool:
    """Tell at once what the hub client finds out after half a minute of retries: whether there is a network at all."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
