"""Starting from somebody's weights: everything must fit but the classifier, which depends on the classes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vision_ssm.checkpoints import convert, read_checkpoint
from vision_ssm.checkpoints.loading import PublishedModel
from vision_ssm.errors import CheckpointError

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
    given = read_checkpoint(path).weights
    own = model.state_dict()
    heads = _classifier_prefixes(model)
    mismatched = [
        name
        for name, tensor in own.items()
        if name.startswith(heads) and (name not in given or given[name].shape != tensor.shape)
    ]
    replaced = heads if heads and mismatched else ()
    try:
        weights = dict(given)
        if isinstance(model, PublishedModel):
            weights = convert(model, given, positions=positions, replaceable=replaced)
        kept = {name: tensor for name, tensor in own.items() if replaced and name.startswith(replaced)}
        loaded = {name: tensor for name, tensor in weights.items() if not (replaced and name.startswith(replaced))}
        model.load_state_dict({**loaded, **kept}, strict=True)
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not replaced:
        return []
    was = next((f" for {len(given[name])} classes" for name in mismatched if name in given), "")
    return [f"{path}: its classifier{was} does not fit these classes; a new one starts from random weights."]


def _classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
