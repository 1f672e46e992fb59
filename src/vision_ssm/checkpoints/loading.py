"""Loading published weights into a model, strictly, with errors in the names of the file that was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from vision_ssm.checkpoints import vim
from vision_ssm.checkpoints.files import select_weights
from vision_ssm.errors import CheckpointError, ConfigError

__all__ = ["POSITION_RULES", "PublishedModel", "convert", "load_published"]

# How a position table of another grid is fitted: at its true places, or as the published fine-tuning did.
POSITION_RULES = ("grid", "published")

_LAYOUTS = {"vim": vim}
_SHOWN = 8


@runtime_checkable
class PublishedModel(Protocol):
    """What a model offers for its published checkpoints to be loaded."""

    published_layout: str

    def fit_positions(self, table: Tensor, rule: str) -> Tensor:
        """Resize a position table of another grid to the model's."""


def load_published(
    model: nn.Module, state_dict: Mapping[str, Any], *, weights: str = "model", positions: str = "grid"
) -> None:
    """Load a published checkpoint's dict into a model of this library, strictly.

    Args:
        model: one of this library's models.
        state_dict: what the published file holds: bare weights or the training state around them ('model',
            'model_ema'), in the published layout or in ours.
        weights: 'model' or 'model_ema'.
        positions: what to do with a position table of another image size: 'grid' resamples it at its true places,
            'published' as the published fine-tuning did (square grids, first rows taken for the class token).

    Raises:
        CheckpointError: no weights in there, or they do not fit; lists missing and unexpected names and shapes.
        ConfigError: the model has no published layout, or an option is unknown.
    """
    ours = convert(model, select_weights(state_dict, weights), positions=positions)
    model.load_state_dict(ours, strict=True)


def convert(
    model: nn.Module, state: Mapping[str, Tensor], *, positions: str = "grid", replaceable: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return ``state`` in the model's own names and shapes, checked to the last tensor.

    Args:
        model: one of this library's models.
        state: bare weights, published layout or ours.
        positions: see :func:`load_published`.
        replaceable: prefixes of names that may have any shape or be missing, because the caller replaces them.

    Raises:
        CheckpointError, ConfigError: as :func:`load_published`.
    """
    if not isinstance(model, PublishedModel):
        raise ConfigError(f"{type(model).__name__} has no published checkpoints to load")
    if positions not in POSITION_RULES:
        raise ConfigError(f"positions must be one of {', '.join(POSITION_RULES)}, got {positions!r}")
    layout = _LAYOUTS[model.published_layout]
    own = model.state_dict()
    table, expected_table = state.get("pos_embed"), own.get("pos_embed")
    fitted = dict(state)
    if table is not None and expected_table is not None and table.shape != expected_table.shape:
        fitted["pos_embed"] = _fitted_table(model, table, positions, own, state)
    expected = layout.to_published(own) if layout.is_published(state) else own
    problems = _differences(expected, fitted, replaceable)
    if problems:
        raise CheckpointError(f"these weights do not fit {type(model).__name__}: {'; '.join(problems)}")
    converted: dict[str, Tensor] = layout.to_ours(fitted)
    return converted


def _fitted_table(
    model: PublishedModel, table: Tensor, rule: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Tensor:
    """Resize the table if all else about tokens agrees; otherwise leave it for the comparison to report."""

    def tokens(names: Mapping[str, Tensor]) -> set[str]:
        return {name for name in names if name.startswith("cls_token")}

    if table.dim() != 3 or table.shape[2] != own["pos_embed"].shape[2] or tokens(own) != tokens(state):
        return table
    rows = table.shape[1] - len(tokens(own))
    if math.isqrt(max(rows, 0)) ** 2 != rows or rows < 1:
        return table
    return model.fit_positions(table, rule)


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], skip: tuple[str, ...]) -> list[str]:
    def relevant(names: Mapping[str, Tensor]) -> set[str]:
        return {name for name in names if not (skip and name.startswith(skip))}

    wanted, present = relevant(expected), relevant(given)
    shapes = [
        f"{name} is {list(given[name].shape)} instead of {list(expected[name].shape)}"
        for name in sorted(wanted & present)
        if given[name].shape != expected[name].shape
    ]
    lists = {"missing": sorted(wanted - present), "unexpected": sorted(present - wanted), "wrong shape": shapes}
    return [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in lists.items()
        if names
    ]
