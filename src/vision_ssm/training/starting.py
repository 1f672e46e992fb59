"""Starting from somebody's weights: everything must fit but the classifier, which depends on the classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from vision_ssm.checkpoints import convert, read_checkpoint
from vision_ssm.checkpoints.tensors import wrong_kinds
from vision_ssm.errors import CheckpointError
from vision_ssm.families import family_of

__all__ = ["load_start"]


def load_start(model: nn.Module, path: str | Path, *, positions: str = "grid") -> list[str]:
    """Load weights from a published or own file into ``model``.

    A classifier of another number of classes is left as the model initialised it. Anything else that does not fit is
    an error. ``positions`` is the rule for a position table of another size, see `vision_ssm.checkpoints`.

    Returns:
        what was not loaded, as sentences for the user; empty when everything was.

    Raises:
        CheckpointError: not a weights file, or weights of another model, listing names and shapes.
    """
    weights = read_checkpoint(path).weights
    own = model.state_dict()
    head = _classifier_names(model, own)
    try:
        if family_of(model) is not None:
            weights = convert(model, weights, positions=positions, replaceable=head)
        mismatched = [name for name in head if name not in weights or weights[name].shape != own[name].shape]
        kept = {name: own[name] for name in head} if mismatched else {}
        if kinds := wrong_kinds(own, {**weights, **kept}):
            raise CheckpointError(f"these weights do not fit: {', '.join(kinds[:5])}")
        model.load_state_dict({**weights, **kept}, strict=True)
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not mismatched:
        return []
    was = next((f" for {len(weights[name])} classes" for name in mismatched if name in weights), "")
    return [f"{path}: its classifier{was} does not fit these classes; a new one starts from random weights."]


def _classifier_names(model: nn.Module, own: Iterable[str]) -> tuple[str, ...]:
    """Names of the classifier's parameters, of which a model may have several (distilled ones) or none."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return tuple(name for name in own if prefixes and name.startswith(prefixes))
