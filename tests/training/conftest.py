from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_ssm.training.config import TrainConfig


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 10x10 noise around three grey levels: 40 images to train on, 11 held out."""
    folder = tmp_path_factory.mktemp("images")
    numbers = np.random.default_rng(0)
    for split, counts in (("train", (14, 13, 13)), ("val", (4, 4, 3))):
        for label, count in enumerate(counts):
            place = folder / split / f"grey{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = numbers.normal(60 + 60 * label, 25, (10, 10, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number:02}.png")
    return folder


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing matplotlib takes longer than these runs; one test looks at the pictures."""
    if request.node.name != "test_what_a_run_leaves":
        monkeypatch.setattr("vision_ssm.training.results.write_pictures", lambda *_: None)


@pytest.fixture
def tiny(images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Configurations of runs that take a moment: ``tiny(**{"optim.lr": 1e-4})``."""

    def make(**overrides: Any) -> TrainConfig:
        values = {
            "model.name": "vim_nano",
            "model.img_size": 8,
            "model.options": {"patch_size": 4, "embed_dim": 16, "depth": 2},
            "data.path": str(images),
            "data.batch_size": 8,
            "data.workers": 0,
            "schedule.epochs": 2,
            "optim.lr": 2e-3,
            "run.output": str(tmp_path / "runs"),
            "run.name": "run",
            "run.device": "cpu",
            "run.log_every": 1,
        }
        return TrainConfig.load(None, values | overrides)

    return make


@pytest.fixture
def everything_on() -> dict[str, Any]:
    """All that draws random numbers or keeps state; 5 batches per epoch leave a partial last update."""
    return {
        "model.drop_path_rate": 0.3,
        "augment.mixup": 0.4,
        "augment.cutmix": 1.0,
        "augment.mix_mode": "elem",
        "augment.label_smoothing": 0.1,
        "augment.auto_augment": "rand-m5-mstd0.5-inc1",
        "augment.erasing": 0.25,
        "optim.accumulate": 2,
        "optim.clip_grad": 1.0,
        "optim.layer_decay": 0.8,
        "ema.decay": 0.9,
        "ema.warmup": True,
    }
