"""Renaming entries of a state dict by tables of the beginnings of their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["inverse", "replaced", "replaced_in_blocks"]

_IN_BLOCK = re.compile(r"(blocks\.\d+)\.(.+)")


def replaced(name: str, table: Mapping[str, str]) -> str:
    """Replace the longest beginning of the dotted ``name``, in whole words, that the table has."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        beginning = ".".join(words[:count])
        if beginning in table:
            return ".".join([table[beginning], *words[count:]])
    return name


def replaced_in_blocks(name: str, top: Mapping[str, str], block: Mapping[str, str]) -> str:
    """Replace by one table what follows ``blocks.{i}.``, and by another the names of everything else."""
    if within := _IN_BLOCK.fullmatch(name):
        return f"{within[1]}.{replaced(within[2], block)}"
    return replaced(name, top)


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """Return the table of the way back."""
    return {ours: published for published, ours in table.items()}
