"""Loading published weights into a model, strictly, with errors in the names of the file that was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.checkpoints.files import select_weights
from vision_ssm.checkpoints.tensors import wrong_kinds
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.families import family_of, named

__all__ = ["POSITION_RULES", "Layout", "convert", "load_published"]

moved.answer(__name__)

# How a position table of another grid is fitted: at its true places, or as the published fine-tuning did.
POSITION_RULES = ("grid", "published")

_SHOWN = 8


class Layout(Protocol):
    """What the module of a family's published layout offers: pure functions from dict to dict.

    One that was published in several spellings also has ``canonical(state)``, which brings all of them to one. A model
    with a position table ``pos_embed`` has ``fit_positions(table, rule)``, which resizes a table of another grid.
    """

    def is_published(self, state: Mapping[str, Tensor]) -> bool:
        """Tell whether the names are the published layout's."""

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map published names and shapes to ours; a dict that is ours already comes back unchanged."""

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map our names and shapes to the published ones; a dict that is published already comes back unchanged."""


def load_published(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    weights: str = "model",
    positions: str = "grid",
    part: str = "",
) -> None:
    """Load a published checkpoint's dict into a model of this library, strictly.

    Args:
        model: one of this library's models.
        state_dict: what the published file holds: bare weights or the training state around them ('model',
            'model_ema'), in the published layout or in ours.
        weights: 'model' or 'model_ema'.
        positions: what to do with a position table of another image size: 'grid' resamples it at its true places,
            'published' as the published fine-tuning did (square grids, first rows taken for the class token).
        part: of the published model, where that is a whole segmentor or detector: 'backbone' reads what its entries
            ``backbone.*`` hold and leaves the others.

    Raises:
        CheckpointError: no weights in there, or they do not fit; lists missing and unexpected names and shapes.
        ConfigError: the model has no published layout, or an option is unknown.
    """
    ours = convert(model, select_weights(state_dict, weights, part), positions=positions)
    model.load_state_dict(ours, strict=True)


def convert(
    model: nn.Module, state: Mapping[str, Tensor], *, positions: str = "grid", replaceable: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return ``state`` in the model's own names and shapes, checked to the last tensor.

    Args:
        model: one of this library's models.
        state: bare weights, published layout or ours.
        positions: see :func:`load_published`.
        replaceable: names (ours) that may have any shape or be missing, because the caller replaces them.

    Raises:
        CheckpointError, ConfigError: as :func:`load_published`.
    """
    if positions not in POSITION_RULES:
        raise ConfigError(f"positions must be one of {', '.join(POSITION_RULES)}, got {positions!r}")
    family = family_of(model)
    if family is None:
        return _convert_whole(model, state, positions, replaceable)
    layout: Layout = named(family.layout)
    own = model.state_dict()
    fitted = dict(getattr(layout, "canonical", dict)(state))
    table, expected_table = state.get("pos_embed"), own.get("pos_embed")
    if table is not None and expected_table is not None and table.shape != expected_table.shape:
        fitted["pos_embed"] = _fitted_table(model, table, positions, own, state)
    skip = dict.fromkeys(replaceable, torch.empty(0))
    expected = own
    if layout.is_published(state):
        expected, skip = layout.to_published(own), layout.to_published(skip)
    problems = _differences(expected, fitted, skip.keys())
    if problems:
        raise CheckpointError(f"these weights do not fit {type(model).__name__}: {'; '.join(problems)}")
    return layout.to_ours(fitted)


def _convert_whole(
    model: nn.Module, state: Mapping[str, Tensor], positions: str, replaceable: tuple[str, ...]
) -> dict[str, Tensor]:
    """Convert a model around a backbone, such as a segmentor: the published ones call that part ``backbone``.

    What is around it has the published names, or its class names the module of their layout, ``published_layout``.
    """
    inside = [(name, module) for name, module in model.named_modules() if family_of(module) is not None]
    if len(inside) != 1:
        raise ConfigError(f"{type(model).__name__} has no published checkpoints to load")
    (prefix, backbone), own = inside[0], model.state_dict()
    layout, shown = getattr(model, "published_layout", None), dict
    if layout is not None and named(layout).is_published(state):
        state, shown = named(layout).to_ours(state), named(layout).to_published
    if any(name.startswith(f"{prefix}.") for name in state):  # ours
        around, converted = dict(state), {}
    else:
        part = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
        found = convert(backbone, part, positions=positions)
        converted = {f"{prefix}.{name}": x for name, x in found.items()}
        around = {name: x for name, x in state.items() if not name.startswith("backbone.")}
    expected = {name: x for name, x in own.items() if name not in converted}
    skip = shown(dict.fromkeys(replaceable, torch.empty(0)))
    if problems := _differences(shown(expected), shown(around), skip.keys()):
        raise CheckpointError(f"these weights do not fit {type(model).__name__}: {'; '.join(problems)}")
    return converted | around


def _fitted_table(
    model: Any, table: Tensor, rule: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Tensor:
    """Resize the table if all else about tokens agrees; otherwise leave it for the comparison to report."""
    expected = own["pos_embed"]
    resizable = (
        table.is_floating_point()
        and table.dim() == expected.dim()
        and (_is_sequence_of(table, own, state) if table.dim() == 3 else table.shape[:-2] == expected.shape[:-2])
    )
    fitted: Tensor = model.fit_positions(table, rule) if resizable else table
    return fitted


def _is_sequence_of(table: Tensor, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Tell whether table [1, rows, D] is a square grid and the class tokens that both sides have."""

    def tokens(names: Mapping[str, Tensor]) -> set[str]:
        return {name for name in names if name.startswith("cls_token")}

    if table.shape[2] != own["pos_embed"].shape[2] or tokens(own) != tokens(state):
        return False
    rows = table.shape[1] - len(tokens(own))
    return rows > 0 and math.isqrt(rows) ** 2 == rows


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], skip: Set[str]) -> list[str]:
    wanted, present = expected.keys() - skip, given.keys() - skip
    shapes = [
        f"{name} is {list(given[name].shape)} instead of {list(expected[name].shape)}"
        for name in sorted(wanted & present)
        if given[name].shape != expected[name].shape
    ]
    kinds = wrong_kinds({name: expected[name] for name in sorted(wanted & present)}, given)
    lists = {
        "missing": sorted(wanted - present),
        "unexpected": sorted(present - wanted),
        "wrong shape": shapes,
        "wrong kind": kinds,
    }
    return [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in lists.items()
        if names
    ]
