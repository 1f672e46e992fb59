"""Decoded images kept by several processes: once in all, whoever decoded them."""

from __future__ import annotations

import multiprocessing
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data import kept
from vision_ssm.data.kept import KeptImages

needs_shared_file = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no nameless files in memory here")


def picture(seed: int, width: int = 5, height: int = 3) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def same(one: Image.Image | None, other: Image.Image) -> bool:
    return one is not None and one.size == other.size and one.tobytes() == other.tobytes()


@pytest.fixture(params=["shared", "own"])
def images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> KeptImages:
    if request.param == "own":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("no nameless files in memory here")
    return KeptImages(4, 150)


def test_what_was_put_comes_back(images: KeptImages) -> None:
    assert images.get(0) is None and images.kept_bytes == 0
    images.put(0, picture(0))
    images.put(3, picture(3, 2, 7))
    assert same(images.get(0), picture(0)) and same(images.get(3), picture(3, 2, 7))
    assert images.get(1) is None


def test_no_more_is_kept_than_the_limit(images: KeptImages) -> None:
    for index in range(4):
        images.put(index, picture(index))
    assert 45 <= images.kept_bytes <= 150
    assert same(images.get(0), picture(0)) and images.get(3) is None


def test_an_image_handed_out_is_the_callers_own(images: KeptImages) -> None:
    images.put(0, picture(0))
    first = images.get(0)
    assert first is not None
    first.putpixel((0, 0), (1, 2, 3))
    assert same(images.get(0), picture(0))


@needs_shared_file
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_put_and_find(method: str) -> None:
    images = KeptImages(4, 10**6)
    images.put(0, picture(0))
    started = multiprocessing.get_context(method).Process(target=_pass_on, args=(images,))
    started.start()
    started.join(60)
    assert started.exitcode == 0
    assert same(images.get(1), picture(0)) and same(images.get(2), picture(2))


def _pass_on(images: KeptImages) -> None:
    found = images.get(0)
    assert found is not None
    images.put(1, found)
    images.put(2, picture(2))


@needs_shared_file
def test_a_place_that_is_anothers_is_not_believed() -> None:
    images = KeptImages(2, 10**6)
    images.put(0, picture(0))
    place = os.pread(images._file, 8, 0)
    os.pwrite(images._file, place, 8)
    assert images.get(1) is None and same(images.get(0), picture(0))


@needs_shared_file
def test_images_are_decoded_all_the_same_where_no_memory_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError("no space")

    images = KeptImages(2, 10**6)
    monkeypatch.setattr(kept.os, "write", full)
    images.put(0, picture(0))
    monkeypatch.undo()
    images.put(1, picture(1))
    assert images.get(0) is None and images.get(1) is None


def test_a_copy_begins_anew() -> None:
    images = KeptImages(2, 10**6)
    images.put(0, picture(0))
    copy = pickle.loads(pickle.dumps(images))
    assert copy.get(0) is None
    copy.put(0, picture(7))
    assert same(copy.get(0), picture(7)) and same(images.get(0), picture(0))
