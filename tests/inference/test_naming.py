"""Names of the files that are written for images."""

from __future__ import annotations

import os

import pytest

from vision_ssm.inference.naming import free_name


@pytest.mark.parametrize("character", ["n", "\u732b", "\udcff"])
def test_long_names_are_cut_between_characters_and_stay_apart(character: str) -> None:
    stem = character * (251 // len(os.fsencode(character)))
    used: set[str] = set()
    names = [free_name(f"folder/{stem}.png", ".features", used) for _ in range(12)]
    assert len(set(names)) == 12
    for name in names:
        assert 250 < len(os.fsencode(name)) <= 255
        assert name.startswith(character)
        assert name.endswith(".features")
        assert set(name[: -len("_12.features")]) == {character}
