"""Some of the samples of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from vision_ssm.data.batches import Samples

__all__ = ["Subset"]


class Subset:
    """The samples at ``positions`` of another data set, in that order; its other attributes are those of the whole.

    Args:
        samples: the whole.
        positions: of those to keep.
        of_each: names of further attributes that hold one entry per sample, such as ``targets``.
        found: what these samples are, in a line for people; None makes one from that of the whole.
    """

    def __init__(
        self, samples: Samples, positions: Sequence[int], of_each: Sequence[str] = (), found: str | None = None
    ) -> None:
        self._samples, self._positions = samples, tuple(positions)
        self.name = samples.name
        self.paths = self._of_each("paths")
        self.scenes = None if getattr(samples, "scenes", None) is None else self._of_each("scenes")
        whole = getattr(samples, "found", "")
        told = f"{len(self._positions):,} of {whole or f'{len(samples):,} images'}"
        self.found = told if found is None else found
        for name in of_each:
            setattr(self, name, self._of_each(name))

    def _of_each(self, name: str) -> tuple[Any, ...]:
        whole = getattr(self._samples, name)
        return tuple(whole[position] for position in self._positions)

    @property
    def fingerprint(self) -> str:
        """A digest of that of the whole and of the positions."""
        digest = blake2b(f"{self._samples.fingerprint} {self._positions}".encode(), digest_size=16)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._samples[self._positions[index]]

    def __getattr__(self, name: str) -> Any:
        # Not for what is looked up while a loading process unpickles this, before there is a whole.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._samples, name)
