"""Where the members of a tar file are, and files that are no whole ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import pytest

from vision_ssm.data.places import read_part
from vision_ssm.data.tar_index import index_of
from vision_ssm.errors import DataError

CONTENTS = {"a.txt": b"first", "folder/" + 120 * "b" + ".txt": 700 * b"x", "empty": b""}


@pytest.fixture(params=[tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def place(request, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=request.param) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in CONTENTS.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return str(tmp_path / "a.tar")


def test_members_are_read_where_they_are(place):
    members = index_of(place)
    assert [member.name for member in members] == [*CONTENTS]
    assert [read_part(place, member.offset, member.size) for member in members] == [*CONTENTS.values()]


def test_cut_anywhere_it_is_told(place, tmp_path):
    content = Path(place).read_bytes()
    last = index_of(place)[-1]
    cut = tmp_path / "cut.tar"
    for length in (last.offset, last.offset - 512, last.offset - 700, 1024 + 3, 700):
        cut.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut.tar' is (truncated|no tar file)"):
            index_of(str(cut))
    cut.write_bytes(b"")
    with pytest.raises(DataError, match=r"cut.tar' is no tar file"):
        index_of(str(cut))
    with pytest.raises(DataError, match=r"the tar file '.*none.tar' is missing"):
        index_of(str(tmp_path / "none.tar"))
    with pytest.raises(DataError, match=r"a.tar' is truncated: it ends 3 bytes before"):
        read_part(place, len(content) - 7, 10)


def test_what_an_address_raises_is_told_with_it(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("slow down")  # of a package, whose exceptions nobody here knows

    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", refuse)
    with pytest.raises(DataError, match=r"cannot read 'memory://photos/a.png': slow down\."):
        read_part("memory://photos/a.png")
    with pytest.raises(DataError, match=r"cannot read '.*': No such file"):
        read_part("/none/a.png")
