from __future__ import annotations

import math

import pytest
import torch

from vision_ssm.tasks.generation.frechet import frechet_distance


def heap(count: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw) + seed


def test_of_one_number_it_is_known() -> None:
    a, b = heap(50, 1, 1).double(), heap(80, 1, 2).double()
    wanted = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(float(wanted))


def test_the_root_of_the_product_by_its_eigenvalues() -> None:
    """tr (S S')^1/2 is the sum of the roots of the eigenvalues of S S', which is not symmetric."""
    a, b = heap(40, 5, 1).double(), heap(30, 5, 2).double()
    roots = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(float(wanted), rel=1e-6)


def test_of_the_same_and_of_fewer_images_than_numbers() -> None:
    a = heap(6, 12, 1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 2) == pytest.approx(48, rel=1e-4)
    assert math.isnan(frechet_distance(a[:1], a))
