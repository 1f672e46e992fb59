"""Strips, windows, scales and mirror images against the plain computations that they stand for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vision_ssm.errors import ConfigError
from vision_ssm.models.segmentor import Segmentor
from vision_ssm.models.segmentors import build_segmentor
from vision_ssm.tasks.fitting import window_starts
from vision_ssm.tasks.segmentation import inference
from vision_ssm.tasks.segmentation.inference import Testing, segment, window_logits


@pytest.fixture(scope="module")
def model() -> Segmentor:
    torch.manual_seed(0)
    heads = {"num_classes": 5, "channels": 8, "auxiliary_channels": 0}
    return build_segmentor("vmamba_nano", heads, patch_size=4, depths=(1, 1, 1, 1)).eval()


def image(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32))


def enlarged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(75, 110), (150, 220), (301, 97), (40, 40)])
def test_strips_give_the_classes_of_the_two_step_rule(
    model: Segmentor, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = image(75, 110)
    expected = enlarged(enlarged(model.decode_head(model.backbone(x)), (75, 110)), size)[0]
    monkeypatch.setattr(inference, "_VALUES", 1)
    monkeypatch.setattr(inference, "_LEAST_ROWS", 2)
    found = segment(model, x, size, Testing())
    assert found.classes.shape == size
    assert found.classes.dtype == torch.uint8
    best = expected.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(found.classes[clear].long(), expected.argmax(0)[clear])
    assert float(found.confidence) == pytest.approx(float(expected.softmax(0).amax(0).mean()), rel=1e-5)


@torch.inference_mode()
def test_what_is_not_finite_shows_in_the_confidence(model: Segmentor) -> None:
    x = image(40, 40)
    x[0, 0, 3, 3] = float("nan")
    assert not segment(model, x, (40, 40), Testing()).confidence.isfinite()


def test_starts_are_the_published_ones() -> None:
    # Published: count = max(H - window + stride - 1, 0) // stride + 1, the last window moved back inside.
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(513, 512, 341) == [0, 1]
    assert window_starts(853, 512, 341) == [0, 341]
    assert window_starts(854, 512, 341) == [0, 341, 342]
    assert window_starts(300, 300, 1) == [0]


@pytest.mark.parametrize("tapered", [True, False])
@pytest.mark.parametrize("columns", [7, 20, 45])
@pytest.mark.parametrize(("window", "stride"), [(10, 7), (10, 10), (16, 5), (64, None)])
def test_windows_join_to_their_weighted_mean(window: int, stride: int | None, columns: int, tapered: bool) -> None:
    height, width, x = 33, 45, image(33, 45).double()
    testing = Testing(window, stride, tapered)

    def logits_of(crop: torch.Tensor) -> torch.Tensor:  # something that differs from window to window
        return crop[:, :2] * crop.abs().mean() + crop.mean()

    found = torch.full((1, 2, height, width), torch.nan, dtype=torch.float64)
    read = []

    def of_window(top: int, left: int, rows: int, wide: int) -> torch.Tensor:
        read.append((top, left))
        return logits_of(x[:, :, top : top + rows, left : left + wide])

    for top, left, block in window_logits(of_window, (height, width), testing, columns=columns):
        place = (..., slice(top, top + block.shape[2]), slice(left, left + block.shape[3]))
        assert found[place].isnan().all(), "no pixel twice"
        assert block.shape[3] <= columns
        found[place] = block
    rows, wide = min(window, height), min(window, width)
    step = stride or max(window * 2 // 3, 1)
    total, weight = torch.zeros(1, 2, height, width, dtype=torch.float64), torch.zeros(height, width)
    profile = [torch.minimum(torch.arange(n) + 0.5, n - torch.arange(n) - 0.5) for n in (rows, wide)]
    one = torch.outer(*profile) if tapered else torch.ones(rows, wide)
    for top in window_starts(height, rows, step):
        for left in window_starts(width, wide, step):
            place = (..., slice(top, top + rows), slice(left, left + wide))
            total[place] += logits_of(x[place]) * one
            weight[place] += one
    torch.testing.assert_close(found, total / weight)
    assert set(read) == {(a, b) for a in window_starts(height, rows, step) for b in window_starts(width, wide, step)}


@torch.inference_mode()
def test_windows_as_large_as_the_image_are_the_image(model: Segmentor) -> None:
    x = image(64, 96)
    whole, cut = segment(model, x, (64, 96), Testing()), segment(model, x, (64, 96), Testing(window=96))
    assert torch.equal(whole.classes, cut.classes)
    halves = segment(model, x, (64, 96), Testing(window=64, stride=32))
    assert halves.classes.shape == (64, 96)
    assert not torch.equal(halves.confidence, whole.confidence)


def joined(model: Segmentor, x: torch.Tensor, testing: Testing) -> torch.Tensor:
    """All logits of an image in windows."""

    def of_window(top: int, left: int, rows: int, columns: int) -> torch.Tensor:
        return model(x[:, :, top : top + rows, left : left + columns])

    blocks = window_logits(of_window, (x.shape[2], x.shape[3]), testing, columns=x.shape[3])
    return torch.cat([block for _, _, block in blocks], 2)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(120, 70), (240, 140), (97, 40)])
def test_a_picture_in_windows_is_classified_as_they_are_computed(
    model: Segmentor, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = image(120, 70)
    expected = enlarged(joined(model, x, Testing(32, 20)), size)[0]
    mirrored = enlarged(joined(model, x.flip(3), Testing(32, 20)), size)[0].flip(2)
    blocks: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watched(*args: Any, **options: Any) -> Iterator[tuple[int, int, torch.Tensor]]:
        nonlocal most
        for top, left, block in window_logits(*args, **options):
            blocks.append(weakref.ref(block))
            most = max(most, sum(known.shape[2] for ref in blocks if (known := ref()) is not None))
            yield top, left, block
            del block

    monkeypatch.setattr(inference, "window_logits", watched)
    monkeypatch.setattr(inference, "_VALUES", 1)
    monkeypatch.setattr(inference, "_LEAST_ROWS", 2)
    found = segment(model, x, size, Testing(32, 20))
    assert len(blocks) == 6 and most <= 2 * 32  # rows of the 120
    best = expected.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-5
    assert torch.equal(found.classes[clear].long(), expected.argmax(0)[clear])
    assert float(found.confidence) == pytest.approx(float(expected.softmax(0).amax(0).mean()), rel=1e-5)
    most = 0
    both = segment(model, x, size, Testing(32, 20, flips=True))
    assert 0 < most <= 2 * 2 * 32
    mean = (expected.softmax(0) + mirrored.softmax(0)) / 2
    assert float(both.confidence) == pytest.approx(float(mean.amax(0).mean()), rel=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["vim_nano", "vmamba_nano"])
@pytest.mark.parametrize("size", [(1, 1), (3, 90), (70, 2)])
def test_images_smaller_than_a_patch_are_padded_and_windows_refused(backbone: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    heads = {"num_classes": 5, "channels": 8, "auxiliary_channels": 0}
    options: dict[str, Any] = {"depth": 4} if backbone == "vim_nano" else {"patch_size": 4, "depths": (1, 1, 1, 1)}
    tiny = build_segmentor(backbone, heads, **options).eval()
    found = segment(tiny, image(*size), size, Testing())
    assert found.classes.shape == size
    assert float(found.confidence) == pytest.approx(float(tiny(image(*size))[0].softmax(0).amax(0).mean()), rel=1e-5)
    if backbone == "vim_nano":
        with pytest.raises(ConfigError, match="a window must be at least as large as the model's patches, got 3 and 4"):
            segment(tiny, image(8, 8), (8, 8), Testing(window=3))


@torch.inference_mode()
def test_mirror_images_and_scales_average_probabilities(model: Segmentor) -> None:
    x, size = image(48, 64), (48, 64)
    each = []
    for scale in (1.0, 0.5):
        scaled = x if scale == 1 else enlarged(x, (24, 32))
        for mirrored in (False, True):
            logits = model(scaled.flip(3)).flip(3) if mirrored else model(scaled)
            each.append(enlarged(logits, size)[0].softmax(0))
    expected = torch.stack(each).mean(0)
    found = segment(model, x, size, Testing(scales=(1.0, 0.5), flips=True))
    best = expected.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-5
    assert torch.equal(found.classes[clear].long(), expected.argmax(0)[clear])
    assert float(found.confidence) == pytest.approx(float(expected.amax(0).mean()), rel=1e-5)


@torch.inference_mode()
def test_embedded_patches_give_what_the_image_gives() -> None:
    torch.manual_seed(0)
    heads = {"num_classes": 5, "channels": 8, "auxiliary_channels": 0}
    columnar = build_segmentor("vim_nano", heads, depth=4).eval()
    x = image(70, 50)
    patches = columnar.inner.embed_strips([x[:, :, :33], x[:, :, 33:]], (70, 50))
    whole, embedded = segment(columnar, x, (70, 50), Testing()), segment(columnar, patches, (70, 50), Testing())
    assert float((whole.classes != embedded.classes).float().mean()) < 0.01
    assert float(embedded.confidence) == pytest.approx(float(whole.confidence), rel=1e-4)
