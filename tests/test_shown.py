"""What is printed of a model, of weights, of results and of settings fits on a few lines and says what matters."""

from __future__ import annotations

import numpy as np
import pytest

import vision_ssm
from vision_ssm.inference.evaluate import Evaluation
from vision_ssm.tasks.scores import Score
from vision_ssm.training.config import TrainConfig
from vision_ssm.weights.files import Loaded

IMAGE = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return vision_ssm.load_model()


def test_models_and_weights(loaded: Loaded) -> None:
    assert repr(loaded.model).splitlines()[:2] == ["Vim(", "  vim_nano, 1.09 M parameters, 10 classes"]
    assert repr(loaded).startswith("Loaded(vim_nano, 1.09 M parameters, 10 classes; WeightsInfo(")
    assert "vim_nano_cifar10.safetensors: vim_nano, class_token='none'" in repr(loaded.info)
    assert "for classification, 10 classes, top1: 0.8556" in repr(loaded.info)
    assert len(repr(loaded)) < 500


def test_results(loaded: Loaded) -> None:
    found = vision_ssm.predict(loaded, [IMAGE, "missing.png"], top_k=1)
    assert repr(found).endswith("vim_nano_cifar10.safetensors': 1 results, 1 failures)")
    assert repr(found.results[0]).startswith("Prediction('image 0', Classes(class: ")
    maps = vision_ssm.features(loaded, IMAGE, layers=[-1])
    assert repr(maps.results[0]) == "Feature('image 0', 128 numbers, map 7: 128 x 8 x 8)"
    assert repr(maps).startswith("Features(vim_nano by ")
    scores = (Score("top1", "top-1", "%"),)
    evaluation = Evaluation("classification", "w", {"top1": 0.5}, scores, 1200, None)
    assert repr(evaluation) == "Evaluation(classification by 'w' on 1,200 images (all): top-1 50.00 %)"


def test_of_settings_what_somebody_chose() -> None:
    config = TrainConfig.load(None, {"data.path": "pets", "schedule.epochs": 7})
    assert repr(config).endswith("(data=ClassificationData(path='pets'), schedule=ScheduleConfig(epochs=7))")
