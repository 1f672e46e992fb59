"""The table of this library's models: what each costs, and what its authors report.

Counting every model takes longer than reading a list should, and even importing torch does: the counts are read from
the variants' rows, which the tests hold to a fresh count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vision_ssm import moved
from vision_ssm.models.denoisers import DENOISERS
from vision_ssm.models.downloaded import downloaded
from vision_ssm.models.variant import Denoiser, Variant, all_variants

__all__ = ["ModelRow", "model_table"]

moved.answer(__name__)


@dataclass(frozen=True)
class ModelRow:
    """One model at its own input size. ``macs`` as in `Cost`; accuracies in percent, None where none is published.

    ``kind`` is 'backbone' or 'denoiser'; ``autoencoder`` the hub's name of what makes the latents that it takes, None
    where it takes pixels. ``weights`` is the address of the file that the authors released, ``licence`` theirs;
    ``file`` is where it was downloaded to, None where it was not.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    params: int
    macs: int
    published_macs: float | None
    top1: float | None
    top5: float | None
    source: str | None
    weights: str | None
    licence: str | None
    file: str | None
    autoencoder: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def model_table(containing: str = "", *, recount: bool = False) -> list[ModelRow]:
    """Describe every backbone and denoiser whose name contains the given text, the smallest first.

    Args:
        containing: part of a name.
        recount: build and count every model again instead of reading what its row says.
    """
    variants = [row for row in all_variants().values() if row.feature_cls is None and containing in row.name]
    denoisers = [row for row in DENOISERS.values() if containing in row.name]
    described = [*(_backbone(row, recount) for row in variants), *(_denoiser(row, recount) for row in denoisers)]
    return sorted(described, key=lambda row: (row.params, row.name))


def _denoiser(row: Denoiser, recount: bool) -> ModelRow:
    params, macs = row.params, row.macs
    (channels, height, width), autoencoder = row.input_size, row.autoencoder
    if recount:
        from vision_ssm.analysis.model_cost import own_size_cost

        (height, width), params, macs = own_size_cost(row.name)
    return ModelRow(
        name=row.name,
        kind="denoiser",
        channels=channels,
        height=height,
        width=width,
        params=params,
        macs=macs,
        published_macs=None,
        top1=None,
        top5=None,
        source=None,
        weights=None,
        licence=None,
        file=None,
        autoencoder=autoencoder.hub if autoencoder else None,
    )


def _backbone(row: Variant, recount: bool) -> ModelRow:
    height = width = row.inputs.side
    params, macs = row.params, row.macs
    if recount or macs is None:
        from vision_ssm.analysis.model_cost import own_size_cost

        (height, width), params, macs = own_size_cost(row.name)
    here = downloaded(row.weights)
    return ModelRow(
        name=row.name,
        kind="backbone",
        channels=3,
        height=height,
        width=width,
        params=params,
        macs=macs,
        published_macs=row.published_macs,
        top1=row.top1,
        top5=row.top5,
        source=row.source,
        weights=row.weights.address if row.weights else None,
        licence=row.origin.licence if row.weights else None,
        file=None if here is None else str(here),
    )
