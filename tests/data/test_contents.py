"""Files that were changed under the same names are noticed; a folder that moved is not a change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vision_ssm.data.contents import contents_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    for number in range(5):
        (place / f"{number}.bmp").write_bytes(bytes([number]) * 100_000)
    return place


def of(folder: Path) -> str:
    return contents_digest([str(path) for path in sorted(folder.iterdir())])


def swap(folder: Path) -> None:
    (folder / "0.bmp").rename(folder / "x")
    (folder / "1.bmp").rename(folder / "0.bmp")
    (folder / "x").rename(folder / "1.bmp")


def flip(at: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / "3.bmp").read_bytes())
        content[at] ^= 1
        (folder / "3.bmp").write_bytes(content)

    return change


@pytest.mark.parametrize("change", [swap, flip(0), flip(-1), lambda folder: (folder / "2.bmp").write_bytes(b"")])
def test_a_change_is_noticed(folder: Path, change: Callable[[Path], None]) -> None:
    before = of(folder)
    change(folder)
    assert of(folder) != before


def test_a_moved_folder_is_the_same(folder: Path, tmp_path: Path) -> None:
    before = of(folder)
    assert of(folder.rename(tmp_path / "elsewhere")) == before


def test_names_that_are_no_files() -> None:
    assert contents_digest(["digits/00042", "/dev/zero"]) == contents_digest([])
