"""How far apart two heaps of images are, in the features of a model.

    d² = |μ − μ′|² + tr(Σ + Σ′ − 2 (Σ Σ′)^½)

the squared Fréchet distance of two normal distributions with the means and covariances of the features. In those of the
Inception network of 2015 it is known as FID (arXiv:1706.08500); in any others it is not, and its values compare with
nothing but themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["frechet_distance"]


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return d² of features [n, D] and [m, D], in float64; nan where either has fewer than two rows.

    The trace of (Σ Σ′)^½ is taken as that of (Σ^½ Σ′ Σ^½)^½, which is symmetric, so it needs no complex numbers.
    """
    if min(len(features), len(others)) < 2:
        return math.nan
    (mean, covariance), (other_mean, other_covariance) = _moments(features), _moments(others)
    root = _root(covariance)
    mixed = _root(root @ other_covariance @ root)
    distance = (mean - other_mean).square().sum() + (covariance + other_covariance - 2 * mixed).trace()
    return max(0.0, float(distance))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    width = features.shape[1]
    return features.mean(0), features.T.cov().view(width, width)  # of one number torch gives a scalar


def _root(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
