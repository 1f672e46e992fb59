"""What is moved in a process while images are decoded is put back, in threads and in forked children, too."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data.images import read_image
from vision_ssm.data.pillow import decoding, silent_libtiff


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A palette as TIFF, which Pillow decodes, with the standard error put aside."""
    file = tmp_path / "a.tif"
    Image.fromarray((np.arange(1200) % 256).astype(np.uint8).reshape(30, 40)).quantize().save(file)
    return file


def test_pillow_neither_warns_nor_limits_and_is_left_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
        with decoding():
            assert image.crop((0, 0, 30, 30)).size == (30, 30)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pillows_limit_survives_threads(path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before is not None
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_another_thread_decodes_can_decode(path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with decoding(10**9), Image.open(path) as image, silent_libtiff(image):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(60)
    before = os.fstat(2)
    child = os.fork()
    if child == 0:
        threading.Timer(30, lambda: os._exit(3)).start()
        try:
            with decoding(1000):
                limit = Image.MAX_IMAGE_PIXELS
            fine = read_image(path, max_pixels=2000).size == (40, 30) and limit == 1000
            os._exit(0 if fine and not os.path.samestat(os.fstat(2), before) else 1)
        finally:
            os._exit(2)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
