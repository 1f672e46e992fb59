"""What is moved in a process while images are decoded, and put back: Pillow's limit, warnings, libtiff's messages."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image

__all__ = ["decoding", "silent_libtiff"]

# Pillow logs some damage; without any handler Python would print that to the terminal.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_Limit = tuple[int, int | None]  # the thread that asked for it, and the pixels; None lifts it


class _State:
    """What this process has changed; a forked child keeps only what the thread that lives on in it had changed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stderr_lock = threading.Lock()
        self.limits: list[_Limit] = []
        self.pillows_limit = Image.MAX_IMAGE_PIXELS
        self.kept_stderr: int | None = None

    def after_fork(self) -> None:
        # Another thread may have held a lock, and will not release it here.
        self.lock, self.stderr_lock = threading.Lock(), threading.Lock()
        if self.limits:
            thread = threading.get_ident()
            self.limits = [limit for limit in self.limits if limit[0] == thread]
            self.apply_limits()
        if self.kept_stderr is not None:
            os.dup2(self.kept_stderr, 2)
            os.close(self.kept_stderr)
            self.kept_stderr = None

    def move_limit(self, change: Callable[[list[_Limit]], None]) -> None:
        with self.lock:
            if not self.limits:
                self.pillows_limit = Image.MAX_IMAGE_PIXELS
            change(self.limits)
            self.apply_limits()

    def apply_limits(self) -> None:
        wanted = [pixels for _, pixels in self.limits if pixels is not None]
        if not self.limits:
            Image.MAX_IMAGE_PIXELS = self.pillows_limit
        else:
            Image.MAX_IMAGE_PIXELS = max(wanted) if len(wanted) == len(self.limits) else None


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.after_fork)


@contextmanager
def decoding(max_pixels: int | None = None) -> Iterator[None]:
    """Within the block Pillow does not warn, and its own limit is at least ``max_pixels``; None lifts it.

    Pillow's limit of 179 million pixels also guards `Image.crop`, so transforms of large images belong in here too.
    Blocks may be nested and may overlap in threads: the widest limit holds.
    """
    limit = (threading.get_ident(), max_pixels)
    _state.move_limit(lambda limits: limits.append(limit))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _state.move_limit(lambda limits: limits.remove(limit))


@contextmanager
def silent_libtiff(image: Image.Image) -> Iterator[None]:
    """Within the block, damage that libtiff reports to the C standard error is not seen: Pillow raises it, too."""
    if image.format != "TIFF":
        yield
        return
    with _state.stderr_lock, open(os.devnull, "w") as nowhere:
        try:
            kept = os.dup(2)
        except OSError:  # closed: nothing is seen anyway
            yield
            return
        _state.kept_stderr = kept
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            _state.kept_stderr = None
            os.close(kept)
