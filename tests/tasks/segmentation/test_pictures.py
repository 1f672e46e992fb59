"""The pictures of an evaluation: they exist, say what they are of, and show what was labelled and predicted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tests.tasks.segmentation.scenes import folder
from vision_ssm.data.batches import Batch
from vision_ssm.errors import DataError
from vision_ssm.tasks.segmentation.meter import SegmentationMeter
from vision_ssm.tasks.segmentation.pictures import draw_confusion, draw_predictions
from vision_ssm.tasks.segmentation.sources import MaskSamples, open_masks


@pytest.fixture
def evaluated(tmp_path: Path) -> tuple[SegmentationMeter, MaskSamples]:
    samples = open_masks(folder(tmp_path / "data", [f"train/{number}" for number in range(8)]), "all")
    meter = SegmentationMeter(samples.class_names)
    for index in range(len(samples)):
        mask = torch.from_numpy(samples.mask(index)).long()
        sizes = torch.tensor([mask.shape])
        found = SimpleNamespace(classes=torch.ones_like(mask))
        meter.update([found], Batch(None, [mask], sizes, torch.tensor([index])))
    return meter, samples


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written."""
    kept: list[Figure] = []
    write = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), write(self, *a, **k))[1])
    return kept


def test_confusion_is_in_percent_of_the_labelled_class(
    tmp_path: Path, evaluated: tuple[SegmentationMeter, MaskSamples], figures: list[Figure]
) -> None:
    draw_confusion(evaluated[0], tmp_path / "confusion.png", title="town")
    axes, scale = figures[0].axes
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0, 100], [0, 100]]
    assert axes.images[0].get_clim() == (0, 100)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sky (184)", "road (192)"]
    assert scale.get_ylabel() == "% of the pixels of each labelled class"
    assert axes.get_title(loc="left") == "town\nmIoU 25.5 % over 8 images"
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 200


def test_classes_that_never_occur_are_left_out_of_a_large_matrix(tmp_path: Path, figures: list[Figure]) -> None:
    meter = SegmentationMeter([f"class {number}" for number in range(150)])
    meter.confusion[:60, :60] = 1 + torch.eye(60, dtype=torch.int64)
    draw_confusion(meter, tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert len(axes.get_yticklabels()) == 60
    assert not axes.texts
    height = axes.get_window_extent().height / figures[0].dpi / 60  # inches for each class
    assert height * 72 > axes.get_yticklabels()[0].get_fontsize()


def test_predictions_show_image_labels_and_prediction(
    tmp_path: Path, evaluated: tuple[SegmentationMeter, MaskSamples], figures: list[Figure]
) -> None:
    meter, samples = evaluated
    draw_predictions(meter, samples, tmp_path / "predictions.png")
    pictures = [axes for axes in figures[0].axes if axes.images]
    assert len(pictures) == 3 * 6
    image, labelled, predicted = (np.asarray(axes.images[0].get_array()) for axes in pictures[-3:])
    last = list(meter.maps)[-1]
    assert image.tolist() == np.asarray(samples[last][0]).tolist()
    assert labelled[0, 1].tolist() == [0, 0, 255]
    assert labelled[0, 0].tolist() == [222, 225, 230]
    assert {tuple(colour) for colour in predicted.reshape(-1, 3).tolist()} == {(90, 90, 90)}
    legend = [text.get_text() for text in figures[0].axes[-1].texts]
    assert legend == ["sky", "road", "not labelled"]
    assert figures[0].texts[0].get_text() == "mIoU 25.5 % over 8 images"


@pytest.mark.filterwarnings("error")
def test_an_empty_evaluation_is_drawn_empty(tmp_path: Path, evaluated: tuple[SegmentationMeter, MaskSamples]) -> None:
    meter = SegmentationMeter(("sky", "road"))
    draw_confusion(meter, tmp_path / "confusion.png")
    draw_predictions(meter, evaluated[1], tmp_path / "predictions.png")
    assert (tmp_path / "confusion.png").stat().st_size > 0
    assert (tmp_path / "predictions.png").stat().st_size > 0


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, evaluated: tuple[SegmentationMeter, MaskSamples]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        draw_confusion(evaluated[0], tmp_path / "file" / "confusion.png")
