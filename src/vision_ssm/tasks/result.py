"""What a task says of one image."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from PIL import Image

from vision_ssm.data.geo.grid import Grid
from vision_ssm.storage import whole_file

__all__ = ["Result"]


class Result(ABC):
    """What was found in one image, in pixels of its file."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}: {value}" for key, value in self.row().items() if value)
        return f"{type(self).__name__}({shown})"

    def row(self) -> dict[str, str]:
        """One line of the table on the terminal: column -> text."""
        return {key: str(value) for key, value in self.to_dict().items()}

    def records(self) -> list[dict[str, Any]]:
        """Lines of a CSV file: column -> value."""
        return [self.to_dict()]

    def cells(self) -> dict[str, Any]:
        """One row of a table of many images: column -> value, of the types that `TaskInfo.columns` says."""
        return self.to_dict()

    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of the RGB image with what was found drawn on it. Of a large scene it is a smaller picture."""
        return image.copy()

    def placed(self, grid: Grid) -> Result:
        """Return the result with the coordinates of its scene, where it has a use for them."""
        return self

    def save(self, stem: Path) -> list[Path]:
        """Write it into files of its kind, called ``stem`` and a suffix, and return them: here a JSON file.

        Raises:
            DataError: a file cannot be written, or what was asked for cannot be had of this image.
        """
        path = Path(f"{stem}.json")
        with whole_file(path) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return [path]
