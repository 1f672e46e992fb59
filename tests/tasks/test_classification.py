from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from vision_ssm.data.loader import Batch
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.classification.settings import AugmentSettings
from vision_ssm.tasks.classification.task import Classification, ClassificationMeter


def batch(targets: torch.Tensor, side: int = 4) -> Batch:
    count = len(targets)
    images = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, side, side).clone()
    return Batch(images, targets, torch.arange(count))


def test_meter_against_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 7), torch.randint(6, (200,))  # class 6 never occurs
    meter = ClassificationMeter(7)
    for part in (slice(0, 64), slice(64, 200)):
        meter.update(logits[part], batch(targets[part]))
    predicted = logits.argmax(1)
    assert meter.count == 200
    assert meter.top1 == pytest.approx((predicted == targets).double().mean())
    assert meter.top5 == pytest.approx(top_k_accuracy_score(targets, logits, k=5, labels=range(7)))
    matrix = confusion_matrix(targets, predicted, labels=range(7))
    assert (meter.confusion.numpy() == matrix).all()
    assert meter.per_class[:6] == pytest.approx((np.diag(matrix)[:6] / matrix.sum(1)[:6]).tolist())
    assert math.isnan(meter.per_class[6])
    assert meter.scores()["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)))


def test_merging_the_meters_of_several_processes() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 3), torch.randint(3, (50,))
    whole, parts = ClassificationMeter(3), [ClassificationMeter(3) for _ in range(3)]
    whole.update(logits, batch(targets))
    for rank, part in enumerate(parts):
        part.update(logits[rank::3], batch(targets[rank::3]))
    parts[1].merge([part.state() for part in parts])
    assert parts[1].scores() == pytest.approx(whole.scores())
    assert torch.equal(parts[1].confusion, whole.confusion)


def test_top5_of_fewer_than_five_classes() -> None:
    meter = ClassificationMeter(2)
    meter.update(torch.eye(2), batch(torch.tensor([1, 0])))
    assert (meter.top_k, meter.top1, meter.top5) == (2, 0.0, 1.0)


class Echo(torch.nn.Module):
    """Remembers the images and answers with fixed logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.linspace(0, 1, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return self.logits.expand(len(images), -1).to(torch.bfloat16)


def test_loss_is_smoothed_cross_entropy_in_float32() -> None:
    model = Echo(4)
    loss = Classification("abcd", AugmentSettings(label_smoothing=0.1)).loss(model, batch(torch.tensor([3, 1])))
    logits = model.logits.detach().to(torch.bfloat16).float()
    log_p = logits.log_softmax(0)
    expected = -(0.9 * (log_p[3] + log_p[1]) / 2 + 0.1 * log_p.mean())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_mixed_targets_follow_the_images() -> None:
    task = Classification("abcd", AugmentSettings(label_smoothing=0.2, mixup=1.0))
    model = Echo(4)
    np.random.seed(3)
    given = batch(torch.tensor([0, 3]))
    loss = task.loss(model, given)
    # Image i is filled with i, so the blend tells the ratio: x = (1 - lam) in the first image.
    share = float(model.images[0, 0, 0, 0])
    assert 0 < share < 1
    log_p = model.logits.detach().to(torch.bfloat16).float().log_softmax(0)
    # Both images see classes 0 and 3, with the shares exchanged; averaged, half of each.
    expected = -(0.8 * (log_p[0] + log_p[3]) / 2 + 0.2 * log_p.mean())
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_no_classes() -> None:
    with pytest.raises(ConfigError, match="at least one class"):
        Classification(())


def test_build_makes_one_output_per_class() -> None:
    model = Classification("abc").build("vim_nano", img_size=8, patch_size=4, depth=1, embed_dim=16)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
