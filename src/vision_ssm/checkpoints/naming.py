"""Renaming entries of a state dict by tables of the beginnings of their names."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["inverse", "replaced"]


def replaced(name: str, table: Mapping[str, str]) -> str:
    """Replace the longest beginning of the dotted ``name``, in whole words, that the table has."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        beginning = ".".join(words[:count])
        if beginning in table:
            return ".".join([table[beginning], *words[count:]])
    return name


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """Return the table of the way back."""
    return {ours: published for published, ours in table.items()}
