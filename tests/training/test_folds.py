"""A run per fold, and what their scores come to."""

from __future__ import annotations

import json
import math
import shutil
import signal
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from vision_ssm.errors import ConfigError
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.tasks.folds import open_fold
from vision_ssm.tasks.registry import find_task
from vision_ssm.training import train, train_folds
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import Event, StepDone

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def heap(images: Path) -> str:
    """Forty images in class folders, 14, 13 and 13, with no part held out."""
    return str(images / "train")


def parts(config: TrainConfig, split: str) -> list[tuple[str, ...]]:
    task = find_task(config.task).load()(config.settings)
    folds = config.data.folds or 0
    return [tuple(open_fold(task, split, fold, folds).samples.paths) for fold in range(folds)]  # type: ignore[arg-type]


def test_folds_hold_out_every_image_once_and_every_class_evenly(tiny: Tiny, heap: str, tmp_path: Path) -> None:
    config = tiny(**{"data.path": heap, "data.folds": 3})
    held, trained = parts(config, "val"), parts(config, "train")
    assert sorted(path for part in held for path in part) == sorted(map(str, Path(heap).rglob("*.png")))
    assert [len(part) for part in held] == [14, 13, 13]
    for part, others in zip(held, trained, strict=True):
        assert not {*part} & {*others}
        assert len(part) + len(others) == 40
        assert set(Counter(Path(path).parent.name for path in part).values()) <= {4, 5}
    moved = shutil.copytree(heap, tmp_path / "elsewhere")
    again = parts(config.replace(**{"data.path": str(moved)}), "val")
    assert [[Path(path).relative_to(moved) for path in part] for part in again] == [
        [Path(path).relative_to(heap) for path in part] for part in held
    ]


def test_a_run_of_each_fold(tiny: Tiny, heap: str) -> None:
    config = tiny(**{"data.path": heap, "data.folds": 2, "schedule.epochs": 1})
    found = train_folds(config)
    names = [run.folder.name for run in found.runs]
    assert names == ["run-fold0", "run-fold1"]
    scores = [run.best_scores["top1"] for run in found.runs]
    assert found.mean["top1"] == pytest.approx(statistics.fmean(scores))
    assert found.deviation["top1"] == pytest.approx(abs(scores[0] - scores[1]) / math.sqrt(2))
    assert found.file == config.run_folder.parent / "run-folds.json"
    written = json.loads(found.file.read_text())
    assert written["mean"]["top1"] == found.mean["top1"]
    assert [run["best_scores"]["top1"] for run in written["runs"]] == scores
    for run, held in zip(found.runs, parts(config, "val"), strict=True):
        assert run.best_weights is not None
        scored = evaluate(run.best_weights, heap)  # knows its own fold again
        assert (scored.split, scored.count, scored.of) == ("val", len(held), 40)
        assert scored.scores["top1"] == pytest.approx(run.best_scores["top1"])
    alone = config.replace(**{"data.fold": 1, "run.name": "alone"})
    assert train(alone).best_scores == found.runs[1].best_scores
    assert alone.run_folder.name == "alone-fold1"


def test_interrupted_folds_go_on(tiny: Tiny, heap: str) -> None:
    config = tiny(**{"data.path": heap, "data.folds": 2, "schedule.epochs": 1})
    steps = 0

    def stop(event: Event) -> None:
        nonlocal steps
        steps += isinstance(event, StepDone)
        if steps == 3 and isinstance(event, StepDone):
            signal.raise_signal(signal.SIGTERM)

    found = train_folds(config, on_event=stop)
    assert (found.interrupted, found.mean, found.file) == ("SIGTERM", {}, None)
    again = config.replace(**{"run.resume": str(config.run_folder)})
    whole = config.replace(**{"run.name": "whole"})
    assert train_folds(again).mean == train_folds(whole).mean


def test_folds_that_cannot_be_cut(tiny: Tiny, images: Path, heap: str) -> None:
    with pytest.raises(ConfigError, match=r"no held-out part of their own, and .* has train, val, test"):
        train_folds(tiny(**{"data.folds": 2}))
    with pytest.raises(ConfigError, match="at most the 40 images there are, got 41"):
        train_folds(tiny(**{"data.path": heap, "data.folds": 41}))
    with pytest.raises(ConfigError, match=r"say which \(data\.fold\)"):
        train(tiny(**{"data.path": heap, "data.folds": 2}))
    with pytest.raises(ConfigError, match=r"data\.fold must be below data\.folds, 2, got 2"):
        tiny(**{"data.folds": 2, "data.fold": 2})
    with pytest.raises(ConfigError, match=r"data\.folds must be .*got 1"):
        tiny(**{"data.folds": 1})
