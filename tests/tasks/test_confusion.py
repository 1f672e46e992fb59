"""The picture of a confusion matrix: what is drawn of it, and which confusions are listed beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from vision_ssm.tasks.confusion import PART, draw_matrix


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that would be written; writing takes the time."""
    kept: list[Figure] = []

    def keep(figure: Figure, path: Path, **_: object) -> None:
        kept.append(figure)
        Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def drawn(counts: np.ndarray, path: Path, figures: list[Figure]) -> tuple[np.ndarray, list[str], str]:
    """Percentages, labels of the rows, and the list beside the matrix."""
    draw_matrix(counts, [f"c{number}" for number in range(len(counts))], path, title="t", unit="images")
    axes = figures[-1].axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    return np.asarray(axes.images[0].get_array()), labels, "".join(text.get_text() for text in axes.texts[1:])


def test_rows_say_how_much_there_is_of_a_class(tmp_path: Path, figures: list[Figure]) -> None:
    counts = np.diag([3, 12_345, 6_700_000, 0])
    counts[0, 1] = 1
    shares, labels, _ = drawn(counts, tmp_path / "a.png", figures)
    assert labels == ["c0 (4)", "c1 (12.3 K)", "c2 (6.7 M)"]
    assert shares[0].tolist() == [75, 25, 0]


def test_only_confusions_that_are_commoner_than_all_others_are_listed(tmp_path: Path, figures: list[Figure]) -> None:
    counts = 5 * np.eye(30, dtype=np.int64)
    for row in range(25):
        counts[row, row + 1] = 1
    assert drawn(counts, tmp_path / "a.png", figures)[2] == ""
    counts[3, 9], counts[7, 2] = 4, 2
    assert drawn(counts, tmp_path / "a.png", figures)[2] == "4 ×  c3  as  c9\n2 ×  c7  as  c2"
    counts[:24, 25] = 3  # 24 alike: none of them goes before another
    assert drawn(counts, tmp_path / "a.png", figures)[2] == "4 ×  c3  as  c9"


def test_of_a_large_matrix_the_confused_classes_are_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    counts = 8 * np.eye(500, dtype=np.int64)
    counts[400, 7], counts[401, 3] = 2, 6
    shares, labels, listed = drawn(counts, tmp_path / "a.png", figures)
    assert labels[-1] == "440 other classes (3,520)"
    assert len(labels) == PART + 1
    assert {"c3 (8)", "c7 (8)", "c400 (10)", "c401 (14)"} <= set(labels)
    assert shares.sum(1) == pytest.approx(100)
    assert listed == "6 ×  c401  as  c3\n2 ×  c400  as  c7"
