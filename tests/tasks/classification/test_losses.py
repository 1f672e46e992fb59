"""Class weights of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vision_ssm.errors import ConfigError
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.classification.losses import class_weights, weighted_cross_entropy
from vision_ssm.tasks.classification.settings import ClassificationSettings


def test_balanced_weights_make_all_classes_weigh_the_same() -> None:
    targets = [0] * 6 + [1] * 3 + [3]
    weights = class_weights("balanced", targets, 4)
    counts = torch.tensor([6, 3, 0, 1])
    assert weights.tolist() == pytest.approx([10 / 24, 10 / 12, 0, 10 / 4])
    assert (weights * counts)[counts > 0].unique().numel() == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_its_equation(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 2, 2])
    weights = torch.tensor([1.0, 5.0, 0.5])
    shares = torch.nn.functional.one_hot(classes, 3) * (1 - smoothing) + smoothing / 3

    def equation(t: Tensor) -> Tensor:
        return -(weights * t * logits.log_softmax(1)).sum() / 6

    torch.testing.assert_close(weighted_cross_entropy(logits, classes, weights, smoothing), equation(shares))
    torch.testing.assert_close(weighted_cross_entropy(logits, shares, weights, 0.0), equation(shares))
    ones = weighted_cross_entropy(logits, classes, torch.ones(3), smoothing)
    torch.testing.assert_close(ones, weighted_cross_entropy(logits, classes, None, smoothing))


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"a factor for each of the 3 classes, got 2\."):
        class_weights((1.0, 2.0), [0, 1, 2], 3)
    with pytest.raises(ConfigError, match="a factor above 0"):
        class_weights((0.0, 0.0), [0, 1], 2)
    with pytest.raises(ConfigError, match="both make up for rare classes"):
        from_mapping(ClassificationSettings, {"data": {"balanced": True}, "loss": {"class_weights": "balanced"}})
