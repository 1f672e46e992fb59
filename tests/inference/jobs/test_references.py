"""The same pictures by whatever they are given as."""

from __future__ import annotations

import sys

import fsspec
import numpy as np
import pytest

pytest.importorskip("pyarrow")

from tests.inference.jobs.archives import write_pictures, write_table, write_tar
from vision_ssm.data.encoded import Encoded
from vision_ssm.data.images import read_image
from vision_ssm.errors import DataError, VisionSSMNotice
from vision_ssm.inference.inputs import Named
from vision_ssm.inference.jobs.references import list_references, opened


@pytest.fixture
def files(tmp_path):
    return write_pictures(tmp_path / "in", 7)


def pixels(named: Named) -> np.ndarray:
    return np.asarray(named.image.read() if isinstance(named.image, Encoded) else read_image(named.image))


def forms(tmp_path, files):
    contents = [file.read_bytes() for file in files]
    remote = fsspec.filesystem("memory")
    for file, content in zip(files, contents, strict=True):
        remote.pipe(f"/photos/{file.name}", content)
    remote.pipe("/tars/a.tar", write_tar(tmp_path / "away.tar", files).read_bytes())
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", files[:4])
    write_tar(tmp_path / "tars" / "1.tar", files[4:])
    (tmp_path / "tables" / "part").mkdir(parents=True)
    write_table(tmp_path / "tables" / "0.parquet", "path", [str(file) for file in files[:4]])
    write_table(tmp_path / "tables" / "part" / "1.parquet", "path", [str(file) for file in files[4:]])
    nested = [{"bytes": content, "path": file.name} for content, file in zip(contents, files, strict=True)]
    return {
        "folder": [tmp_path / "in"],
        "pattern": [f"{tmp_path}/in/*.png"],
        "list": files,
        "tar": [write_tar(tmp_path / "all.tar", files)],
        "tars": [tmp_path / "tars"],
        "pattern of tars": [f"{tmp_path}/tars/*.tar"],
        "tables": [tmp_path / "tables"],
        "pattern of tables": [f"{tmp_path}/tables/**/*.parquet"],
        "paths": [write_table(tmp_path / "paths.parquet", "path", [str(file) for file in files])],
        "bytes": [write_table(tmp_path / "bytes.parquet", "content", contents)],
        "nested": [write_table(tmp_path / "nested.parquet", "image", nested)],
        "address": ["memory://photos/"],
        "addresses": ["memory://photos/*.png"],
        "remote tar": ["memory://tars"],
    }


def test_all_forms_are_the_same_pictures(tmp_path, files):
    wanted = [np.asarray(read_image(file)) for file in files]
    for form, inputs in forms(tmp_path, files).items():
        references = list_references(inputs, [])
        assert [np.array_equal(pixels(named), one) for named, one in zip(opened(references), wanted, strict=True)] == [
            True
        ] * 7, form
        names = [reference.name for reference in references]
        assert len({*names}) == 7
        assert form == "bytes" or all(name.endswith(file.name) for name, file in zip(names, files, strict=True)), form


def test_what_cannot_be_used_is_told(tmp_path, files):
    failures = []
    assert list_references([f"{tmp_path}/*.jpg"], failures) == []
    assert failures[0].reason == "no file matches this pattern"
    with pytest.raises(DataError, match="no images; give image files, folders, tar files"):
        list_references([], [])
    with pytest.raises(
        DataError, match=r"^the table .* called path, .*; its columns are words \(string\), id \(int64\)"
    ):
        list_references([write_table(tmp_path / "t.parquet", "words", ["a"])], [])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no parquet table, or damaged"):
        list_references([tmp_path / "bad.parquet"], [])
    with pytest.raises(DataError, match="no images at 'memory://nothing"):
        list_references(["memory://nothing/*.png"], [])
    with pytest.raises(DataError, match="'nope://x/' cannot be opened"):
        list_references(["nope://x/"], [])


def test_the_package_of_an_address_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"'s3://bucket/a.tar' is read by fsspec, .*: s3fs for s3://"):
        list_references(["s3://bucket/a.tar"], [])


def test_a_row_without_a_path_is_an_image_that_fails(tmp_path, files):
    table = write_table(tmp_path / "t.parquet", "path", [str(files[0]), None, "", str(files[1])])
    references = list_references([table], [])
    assert [reference.name for reference in references] == [str(files[0]), f"{table}/1", f"{table}/2", str(files[1])]
    with pytest.raises(DataError, match=r"row 1 of the table '.*t.parquet' has no image"):
        pixels(opened(references)[1])


def test_a_folder_of_images_stays_one(tmp_path, files):
    """Tar files and tables beside images, whose folder it may be, are told of and left out."""
    write_tar(tmp_path / "all.tar", files)
    with pytest.warns(VisionSSMNotice, match=r"files of other formats are left out: 1 \.tar"):
        assert [reference.place for reference in list_references([tmp_path], [])] == [str(file) for file in files]
