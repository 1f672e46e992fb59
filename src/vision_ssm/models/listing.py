"""The names of all models, from the tables alone: no torch."""

from __future__ import annotations

from vision_ssm.models.denoisers import DENOISERS
from vision_ssm.models.detectors import DETECTORS
from vision_ssm.models.segmentors import SEGMENTORS
from vision_ssm.models.variant import WithHeads, all_variants

__all__ = ["WHOLE", "list_models", "list_whole_models"]

WHOLE: dict[str, WithHeads] = {**SEGMENTORS, **DETECTORS}
"""Published models of other tasks than classification, a backbone with its heads, by their names."""


def list_models() -> list[str]:
    """Names of this library's models; the ``..._pyramid`` forms for dense tasks are left out."""
    return sorted(name for name, row in all_variants().items() if row.feature_cls is None)


def list_whole_models() -> list[str]:
    """Names of models of other tasks than classification: a backbone with its heads, or a denoiser."""
    return sorted([*WHOLE, *DENOISERS])
