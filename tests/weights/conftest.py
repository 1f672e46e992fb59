"""The tiny model and data set of the tests of inference."""

from __future__ import annotations

from tests.inference.conftest import colour_folder, loaded, weights

__all__ = ["colour_folder", "loaded", "weights"]
