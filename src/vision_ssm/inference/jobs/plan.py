"""How a job is cut into pieces: a pure function of its inputs.

Piece ``k`` of ``n`` is the images ``[k * rows, (k + 1) * rows)`` of the list and becomes ``part-k-of-n.parquet``; where
that is no table, with another suffix. Whoever makes the plan again, on another machine or after everything was killed,
makes the same one; so the files that are there say all there is to know about what is done, and nothing else has to be
kept.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from vision_ssm.data.places import is_remote, state_of
from vision_ssm.errors import ConfigError, DataError
from vision_ssm.inference.jobs.references import Reference
from vision_ssm.storage import whole_file

__all__ = ["ABOUT", "Piece", "Plan", "plan_of"]

ABOUT = "_job.json"
"""Name of the file in the folder of shards that says what they are of; readers of tables pass over such names."""


class Piece(NamedTuple):
    """Consecutive images of a job, of which one file is made."""

    number: int
    references: tuple[Reference, ...]

    def located(self) -> Piece:
        """Return the same images by their whole paths, for workers that were started in another folder."""
        whole = [place if is_remote(place) else os.path.abspath(place) for _, _, place, *_ in self.references]
        pairs = zip(self.references, whole, strict=True)
        return Piece(self.number, tuple(reference._replace(place=place) for reference, place in pairs))


@dataclass(frozen=True)
class Plan:
    """The pieces of a job.

    Attributes:
        pieces: in order.
        digest: of the names of all images, in order, of when their files were written, addresses aside, and of how they
            are cut.
        suffix: of the files.
    """

    pieces: tuple[Piece, ...]
    digest: str
    suffix: str = ".parquet"

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(piece.references) for piece in self.pieces)

    def file(self, folder: Path, piece: Piece) -> Path:
        """Where what is made of a piece goes."""
        return folder / f"part-{piece.number:05d}-of-{len(self.pieces):05d}{self.suffix}"

    def missing(self, folder: Path) -> list[Piece]:
        """The pieces that are not done."""
        return [piece for piece in self.pieces if not self.file(folder, piece).exists()]

    def begin(self, folder: Path, work: dict[str, Any]) -> None:
        """Say in the folder what its shards are of, or make sure that they are of this.

        Args:
            folder: of the shards.
            work: what is done with the images, as plain JSON values.

        Raises:
            DataError: the folder holds shards of other images or of other work; nothing was written.
        """
        about = {"images": self.images, "pieces": len(self.pieces), "inputs": self.digest, "work": work}
        path = folder / ABOUT
        for left in folder.glob(".part-*.part"):  # by a job that was killed while it wrote
            with contextlib.suppress(OSError):
                left.unlink()
        if not path.exists():
            if any(folder.glob("part-*-of-*")):
                raise DataError(
                    f"{str(folder)!r} holds shards and no {ABOUT} that says of what; choose another folder."
                )
            with whole_file(path) as part:
                part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changes = _changes(before, about)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read {str(path)!r} ({error}); choose another folder.") from error
        if changes:
            raise DataError(
                f"{str(folder)!r} holds shards of another job: {'; '.join(changes)}. Choose another folder, or remove "
                "this one."
            )


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    told = [
        f"{name} was {before['work'].get(name)!r} and is {value!r}"
        for name, value in now["work"].items()
        if before["work"].get(name) != value
    ]
    told += [
        f"{name} was {value!r} and is not given" for name, value in before["work"].items() if name not in now["work"]
    ]
    if before["images"] != now["images"]:
        told.append(f"there were {before['images']:,} images and are {now['images']:,}")
    elif before["pieces"] != now["pieces"]:
        told.append(f"they were cut into {before['pieces']:,} shards and are into {now['pieces']:,}")
    elif before["inputs"] != now["inputs"]:
        told.append("the images have changed: others, in another order, or files written anew")
    return told


def plan_of(references: Sequence[Reference], rows: int, suffix: str = ".parquet") -> Plan:
    """Cut images into pieces of ``rows`` each, the last one of what is left; ``suffix`` is that of their files.

    Raises:
        ConfigError: ``rows`` is below one.
    """
    if rows < 1:
        raise ConfigError(f"a shard has at least one row, got shard_rows={rows}.")
    digest = blake2b(f"{rows}\n".encode(), digest_size=16)
    state = lru_cache(maxsize=None)(state_of)
    for reference in references:
        # Asking for the state of every address would take longer than some jobs.
        known = () if reference.kind == "address" else state(reference.place)
        digest.update(f"{reference!r} {known}\n".encode(errors="surrogatepass"))
    cuts = range(0, len(references), rows)
    pieces = (Piece(number, tuple(references[start : start + rows])) for number, start in enumerate(cuts))
    return Plan(tuple(pieces), digest.hexdigest(), suffix)
