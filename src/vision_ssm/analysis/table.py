"""The table of this library's models: what each costs, and what its authors report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vision_ssm.analysis.model_cost import cost
from vision_ssm.models import PUBLISHED, list_models

__all__ = ["ModelRow", "model_table"]


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


def model_table(containing: str = "") -> list[ModelRow]:
    """Describe every model whose name contains the given text, the smallest first."""
    rows = []
    for name in list_models():
        if containing in name:
            found, published = cost(name), PUBLISHED.get(name)
            _, _, height, width = found.input_size
            rows.append(
                ModelRow(
                    name,
                    height,
                    width,
                    found.params,
                    found.macs,
                    published.multiply_adds if published else None,
                    published.top1 if published else None,
                    published.top5 if published else None,
                    published.accuracy_source if published else None,
                )
            )
    return sorted(rows, key=lambda row: (row.params, row.name))
