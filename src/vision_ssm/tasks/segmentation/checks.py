"""Whether images and masks fit together, and what is told of those that do not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from vision_ssm.errors import DataError, notify
from vision_ssm.tasks.segmentation.classes import ClassList
from vision_ssm.tasks.segmentation.labels import FoundLabels, LabelTable
from vision_ssm.tasks.segmentation.layouts import Fault, Pair
from vision_ssm.tasks.segmentation.masks import IGNORE, read_mask

__all__ = ["described", "faults_of", "require_labels", "require_whole"]


def require_whole(faults: Sequence[Fault]) -> None:
    """Raise DataError where one of the faults is ``refused``."""
    refused = [fault for fault in faults if fault.kind == "refused"]
    if refused:
        others = [Path(fault.path.name) for fault in refused[1:]]
        more = f" {len(others):,} more do not fit: {_listed(others)}." if others else ""
        raise DataError(f"{refused[0].text}{more}")


def faults_of(part: str, faults: Sequence[Fault], parts: Collection[str]) -> list[Fault]:
    """Return those that are told with one of the ``parts``: what is trained on tells of parts that are none."""
    return [fault for fault in faults if part in ("all", fault.part) or (part == "train" and fault.part not in parts)]


def require_labels(pairs: Sequence[Pair], classes: ClassList, max_pixels: int, split: str) -> None:
    """Look at sixteen masks, evenly spread: enough to notice the wrong numbers without reading all of them.

    Where these have no pixel of any class, the others are looked at until one has.

    Raises:
        DataError: a mask cannot be read or holds other numbers; or none has a pixel of a class, which is only told
            where they are not to be learned.
    """
    table, seen, labelled = LabelTable(classes), FoundLabels(), set(classes.values)
    first = range(0, len(pairs), max(1, len(pairs) // 16))[:16]
    for count, at in enumerate([*first, *(at for at in range(len(pairs)) if at not in first)], 1):
        labels = read_mask(pairs[at].mask, colours=classes.colours, max_pixels=max_pixels)
        table.classes(labels, pairs[at].mask)
        seen.add(labels, pairs[at].mask)
        if count >= len(first) and not labelled.isdisjoint(seen.values):
            break
    if set(seen.values) == {0, IGNORE} and IGNORE in classes.ignored and 0 in classes.values:
        raise DataError(
            f"the masks hold 0 and {IGNORE} only, as black and white pictures do, and {IGNORE} means that a pixel does "
            f'not count. If it is a class, say so in classes.json: [{{"name": "{classes.names[0]}", "id": 0}}, '
            f'{{"name": "{classes.names[1]}", "id": {IGNORE}}}].'
        )
    if labelled.isdisjoint(seen.values):
        told = (
            f"none of the {len(pairs):,} masks for {split} has a pixel of a class: {_listed([p.mask for p in pairs])} "
            f"hold{'s' if len(pairs) == 1 else ''} {', '.join(map(str, seen.values))} alone. The {len(classes.names)} "
            f"classes are {table.expected}"
        )
        if split in ("train", "all"):
            raise DataError(f"{told}. Label pixels, or give the numbers a class in classes.json.")
        notify(f"{told}. There is nothing to score, and nothing to choose weights by.")


def described(count: int, names: Sequence[str], place: str, folder: Path, faults: Sequence[Fault]) -> str:
    """Say in a line what samples are, and tell what of the folder is left out."""
    by_text: dict[str, list[Path]] = {}
    for fault in faults:
        if fault.kind != "refused":
            by_text.setdefault(fault.text, []).append(fault.path.relative_to(folder))
    left_out = "; ".join(f"{_listed(files)} {text}" for text, files in by_text.items())
    if left_out:
        notify(f"left out of {place!r}: {left_out}.")
    shown = ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:8])}, ..."
    without = f"; left out: {left_out}" if left_out else ""
    return f"{count:,} images of {len(names)} classes ({shown}) in {place}{without}"


def _listed(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
    return f"{', '.join(map(str, files[:3]))}{more}"
