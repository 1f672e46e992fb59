"""The house's style of plots: colours, and a figure that is written as a PNG file, whole or not at all.

matplotlib is imported on first use and only through its file backend: no window, no global state.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_ssm.storage import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREY", "INK", "ORANGE", "RED", "png_figure", "shortened"]

BLUE, ORANGE, RED, GREY, INK = "#2563a8", "#d97b12", "#c62f2f", "#8b929c", "#22262c"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $a$
}


@contextmanager
def png_figure(path: str | Path, size: tuple[float, float], layout: str | None = "constrained") -> Iterator[Figure]:
    """Yield a figure of ``size`` inches in the house's style; on a clean exit it is written to ``path``, whole.

    Raises:
        DataError: the picture cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # class names in scripts the font lacks
        figure = Figure(figsize=size, layout=layout, facecolor="white")  # type: ignore[arg-type]
        FigureCanvasAgg(figure)
        yield figure
        with whole_file(path) as part:
            figure.savefig(part, format="png", dpi=130, bbox_inches="tight", pad_inches=0.12)


def shortened(text: str, length: int) -> str:
    """Return a name in at most ``length`` characters: the first of a list of synonyms, else its beginning and end."""
    text = " ".join(text.split())
    if len(text) > length:
        text = text.split(",")[0]  # ImageNet's names are lists of synonyms
    if len(text) <= length:
        return text
    end = (length - 1) // 3
    return f"{text[: length - 1 - end].rstrip()}…{text[len(text) - end :].lstrip()}"
