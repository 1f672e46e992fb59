"""Registers every variant with timm. Imported as soon as timm is; models are imported when one is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timm.models import generate_default_cfgs, register_model

from vision_ssm.families import FAMILIES, Family, named
from vision_ssm.models.building import build
from vision_ssm.models.variant import Variant

if TYPE_CHECKING:
    from torch import nn

__all__ = ["register"]


def register(family: Family) -> None:
    """Make timm know the variants of a family, under the name of the module that holds their table."""
    table = named(family.variants)
    table.default_cfgs = generate_default_cfgs(
        {f"{row.name}.{row.tag}": _configuration(row, table.TIMM) for row in table.VARIANTS}
    )
    for row in table.VARIANTS:
        function = _function(family, row)
        setattr(table, row.name, function)
        register_model(function)


def _function(family: Family, row: Variant) -> Callable[..., nn.Module]:
    """What timm calls to build the variant."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(named(family.model), row, pretrained, kwargs, getattr(named(family.variants), "features", None))

    create.__name__ = create.__qualname__ = row.name
    create.__module__ = family.variants
    create.__doc__ = row.description
    return create


def _configuration(row: Variant, of_family: dict[str, Any]) -> dict[str, Any]:
    """A row in the words of timm's pretrained configuration."""
    inputs, origin, weights = row.inputs, row.origin, row.weights
    where: dict[str, str] = {}
    if weights is not None:
        where = (
            {"url": weights.address} if weights.page else {"hf_hub_id": weights.hub, "hf_hub_filename": weights.file}
        )
    return {
        **where,
        "num_classes": inputs.classes,
        "input_size": (3, inputs.side, inputs.side),
        "pool_size": None,
        "crop_pct": inputs.crop_pct,
        "interpolation": "bicubic",
        "mean": inputs.mean,
        "std": inputs.std,
        "license": origin.licence,
        "paper_ids": origin.paper,
        "paper_name": origin.title,
        "origin_url": origin.repository if row.source else None,  # the authors have no such model else
        **of_family,
    }


for _family in FAMILIES:
    register(_family)
