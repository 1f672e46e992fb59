"""Tar files of others: every image is found with its class, and what cannot be used is named."""

from __future__ import annotations

import io
import json
import tarfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data.labelled import tars
from vision_ssm.data.labelled.packed import open_packed
from vision_ssm.errors import DataError


def picture(shade):
    content = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), shade, np.uint8)).save(content, "PNG")
    return content.getvalue()


index_tars = partial(tars.index_tars, task="classification")


def tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def samples(*classes, start=0):
    """Images whose shade is their number, with classes after them, and files that are neither."""
    found = {}
    for number, told in enumerate(classes, start):
        found |= {f"a/n{number}.cls": told.encode(), f"a/n{number}.png": picture(number), f"a/n{number}.txt": b"?"}
    return found


def test_each_image_with_its_class(tmp_path):
    tar(tmp_path / "imagenet-train-000000.tar", samples("2", "0"))
    tar(tmp_path / "imagenet-train-000001.tar", samples("1\n", start=2))
    tar(tmp_path / "imagenet-validation-0.tar", samples("2", start=3))
    seen = []
    assert index_tars(tmp_path, on_progress=lambda *done: seen.append(done)) == {"train": 3, "val": 1}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    train, val = (open_packed(tmp_path, split) for split in ("train", "val"))
    assert (train.class_names, train.targets, val.targets) == (("0", "1", "2"), (2, 0, 1), (2,))
    assert [int(np.asarray(train[index][0])[0, 0, 0]) for index in range(3)] == [0, 1, 2]
    assert int(np.asarray(val[0][0])[0, 0, 0]) == 3
    assert train.paths[0] == f"{tmp_path}/imagenet-train-000000.tar/a/n0.png"
    with pytest.raises(DataError, match="holds shards already"):
        index_tars(tmp_path)
    (tmp_path / "shards.json").unlink()  # lists of ours may be written again
    before = train.fingerprint
    index_tars(tmp_path)
    assert open_packed(tmp_path, "train").fingerprint == before != val.fingerprint


@pytest.mark.parametrize("name", ["names.json", "names.txt"])
def test_classes_by_name(tmp_path, name):
    tar(tmp_path / "all.tar", samples("dog", "cat"))
    assert index_tars(tmp_path) == {"train": 2}
    found = open_packed(tmp_path, "train")
    assert (found.class_names, found.targets) == (("cat", "dog"), (1, 0))
    (tmp_path / "shards.json").unlink()
    names = ["dog", "cow", "cat"]
    (tmp_path / name).write_text(json.dumps(names) if name.endswith("json") else "\n".join([*names, ""]))
    index_tars(tmp_path, classes=tmp_path / name)
    found = open_packed(tmp_path, "train")
    assert (found.class_names, found.targets) == (("dog", "cow", "cat"), (0, 2))


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"x.png": b"1"}, r"there is 'x.png', and a .cls file with its class is missing"),
        ({"x.cls": b"1"}, r"there is 'x.cls', and an image is missing beside it"),
        ({"x.png": b"1", "x.jpg": b"1", "x.cls": b"1"}, "two files for the image of 'x.jpg'"),
        ({"x.png": b"1", "x.cls": b" "}, "'x.cls' in .* is empty"),
        ({"x.txt": b"1"}, "holds no image with a .cls file beside it"),
        ({"x.png": b"1", "x.cls": b"3"}, "has class 3, and only 2 names of classes are given"),
        ({"x.png": b"1", "x.cls": b"cat"}, "has class 'cat', which is none of the 2 names"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, files, text):
    tar(tmp_path / "train.tar", files)
    (tmp_path / "names.txt").write_text("one\ntwo")
    with pytest.raises(DataError, match=text):
        index_tars(tmp_path, classes=tmp_path / "names.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names.txt", "train.tar"]


def test_folders_and_files_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match=r"no \.tar files in .* have to be unpacked first"):
        index_tars(tmp_path)
    with pytest.raises(DataError, match=r"'memory://tars' is an address, .* give a folder of copies"):
        index_tars("memory://tars")
    tar(tmp_path / "train-0.tar", samples("1"))
    other = tar(tmp_path / "more-0.tar", samples("1"))
    with pytest.raises(DataError, match=r"more-0.tar' must say of which part it is, .* found none"):
        index_tars(tmp_path)
    other.rename(tmp_path / "train-val.tar")
    with pytest.raises(DataError, match="found train and val"):
        index_tars(tmp_path)
    (tmp_path / "train-val.tar").unlink()
    mine = tmp_path / "train-0.json"
    mine.write_text('{"mine": 1}')
    with pytest.raises(DataError, match=r"train-0.json' is in the place of the list .* move it away"):
        index_tars(tmp_path)
    assert mine.read_text() == '{"mine": 1}'
    mine.unlink()
    (tmp_path / "names.txt").write_text("one\none")
    with pytest.raises(DataError, match="each once; it has 2, 1 of them new"):
        index_tars(tmp_path, classes=tmp_path / "names.txt")
