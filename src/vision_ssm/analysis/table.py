"""The table of this library's models: what each costs, and what its authors report.

Counting every model takes longer than reading a list should, and even importing torch does: the table is kept in
models.json and the tests hold it to a fresh count. `vision-ssm models --recount --json` prints it anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["ModelRow", "model_table", "recounted_row"]

TABLE = Path(__file__).with_name("models.json")


@dataclass(frozen=True)
class ModelRow:
    """One model at its own input size. ``macs`` as in `Cost`; accuracies in percent, None where none is published."""

    name: str
    height: int
    width: int
    params: int
    macs: int
    published_macs: float | None
    top1: float | None
    top5: float | None
    source: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def model_table(containing: str = "", *, recount: bool = False) -> list[ModelRow]:
    """Describe every model whose name contains the given text, the smallest first.

    Args:
        containing: part of a name.
        recount: build and count every model again instead of reading the table that comes with the package.
    """
    if recount:
        from vision_ssm.models import list_models

        rows = [recounted_row(name) for name in list_models() if containing in name]
    else:
        kept = [ModelRow(**row) for row in json.loads(TABLE.read_text(encoding="utf-8"))]
        rows = [row for row in kept if containing in row.name]
    return sorted(rows, key=lambda row: (row.params, row.name))


def recounted_row(name: str) -> ModelRow:
    """Build one model without its weights and describe it. Raises ConfigError for an unknown name."""
    from vision_ssm.analysis.model_cost import own_size_cost
    from vision_ssm.models import PUBLISHED

    (height, width), params, macs = own_size_cost(name)
    published = PUBLISHED.get(name)
    return ModelRow(
        name,
        height,
        width,
        params,
        macs,
        published.multiply_adds if published else None,
        published.top1 if published else None,
        published.top5 if published else None,
        published.accuracy_source if published else None,
    )
