"""A digest by which a resumed run tells that it sees the same images."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Protocol

__all__ = ["fingerprint"]


class _Labelled(Protocol):
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...]


def fingerprint(samples: _Labelled) -> str:
    """Return a digest of the class names and of every sample's file name and class; where the files lie is left out."""
    digest = blake2b(digest_size=16)
    # surrogatepass: file names need not be valid text.
    for text in samples.class_names:
        digest.update(f"{text}\n".encode(errors="surrogatepass"))
    for path, target in zip(samples.paths, samples.targets, strict=True):
        digest.update(f"{target} {Path(path).name}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()
