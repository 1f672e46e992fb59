from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from vision_ssm.data.batches import Batch
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.classification.meter import ClassificationMeter
from vision_ssm.tasks.classification.settings import ClassificationSettings
from vision_ssm.tasks.classification.task import Classification


def batch(targets: torch.Tensor, side: int = 4) -> Batch:
    count = len(targets)
    images = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, side, side).clone()
    return Batch(images, targets, torch.full((count, 2), side), torch.arange(count))


def test_meter_against_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 7), torch.randint(6, (200,))  # class 6 never occurs
    meter = ClassificationMeter("abcdefg")
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
    whole, parts = ClassificationMeter("abc"), [ClassificationMeter("abc") for _ in range(3)]
    whole.update(logits, batch(targets))
    for rank, part in enumerate(parts):
        part.update(logits[rank::3], batch(targets[rank::3]))
    parts[1].merge([part.state() for part in parts])
    assert parts[1].scores() == pytest.approx(whole.scores())
    assert torch.equal(parts[1].confusion, whole.confusion)


@pytest.mark.parametrize(("names", "scored"), [("ab", False), ("abcde", False), ("abcdef", True)])
def test_top5_is_a_score_where_it_can_be_missed(names: str, scored: bool) -> None:
    meter = ClassificationMeter(names)
    last = len(names) - 1
    meter.update(torch.arange(last + 1).flip(0)[None].float(), batch(torch.tensor([last])))  # the least likely one
    assert meter.top5 == (0 if scored else 1)
    task = Classification.restore({"class_names": list(names)}, ClassificationSettings())
    assert list(meter.scores()) == [score.name for score in task.scores]
    assert ("top5" in meter.scores()) is scored


class Labelled:
    """Training data, as far as the task looks at it."""

    mirror_safe = True

    def __init__(self, class_names: str) -> None:
        self.class_names = tuple(class_names)


def task(class_names: str, **augment: object) -> Classification:
    made = Classification(from_mapping(Classification.Settings, {"augment": augment}))
    made.prepare(Labelled(class_names))
    return made


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
    loss = task("abcd", label_smoothing=0.1).losses(model, batch(torch.tensor([3, 1])))["loss"]
    logits = model.logits.detach().to(torch.bfloat16).float()
    log_p = logits.log_softmax(0)
    expected = -(0.9 * (log_p[3] + log_p[1]) / 2 + 0.1 * log_p.mean())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_mixed_targets_follow_the_images() -> None:
    mixing = task("abcd", label_smoothing=0.2, mixup=1.0)
    model = Echo(4)
    np.random.seed(3)
    given = batch(torch.tensor([0, 3]))
    loss = mixing.losses(model, given)["loss"]
    # Image i is filled with i, so the blend tells the ratio: x = (1 - lam) in the first image.
    share = float(model.images[0, 0, 0, 0])
    assert 0 < share < 1
    log_p = model.logits.detach().to(torch.bfloat16).float().log_softmax(0)
    # Both images see classes 0 and 3, with the shares exchanged; averaged, half of each.
    expected = -(0.8 * (log_p[0] + log_p[3]) / 2 + 0.2 * log_p.mean())
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_build_makes_one_output_per_class() -> None:
    model = task("abc").build("vim_nano", img_size=8, patch_size=4, depth=1, embed_dim=16)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
