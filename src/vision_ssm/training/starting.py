"""Starting from somebody's weights: everything must fit but the head, which depends on what is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from timm.models import adapt_input_conv
from torch import Tensor, nn

from vision_ssm.checkpoints import convert, read_checkpoint
from vision_ssm.checkpoints.tensors import wrong_kinds
from vision_ssm.errors import CheckpointError
from vision_ssm.families import family_of
from vision_ssm.weights.recognition import misfit
from vision_ssm.weights.shipped import find_weights

__all__ = ["load_start"]

SHOWN = 5  # names in a message


def load_start(
    model: nn.Module, path: str | Path, *, backbone: nn.Module | None = None, positions: str = "grid"
) -> list[str]:
    """Load weights from a published or own file into ``model``.

    A head of another number of outputs is left as the model initialised it. A first layer of other channels is repeated
    and scaled as timm does for pretrained weights, see `timm.models.adapt_input_conv`. Anything else that does not fit
    is an error. Where ``model`` is built around a backbone, that must fit, and of what is around it those layers are
    taken that the file has in the same shape: all but the last ones from such a model of other classes, none from a
    file of the backbone alone or of another task.

    Args:
        model: as the task built it.
        path: the file, the folder of a run, whose best weights are taken, or the name of shipped weights.
        backbone: the part of ``model`` that published weights are for; None for all of it.
        positions: the rule for a position table of another size, see `vision_ssm.checkpoints`.

    Returns:
        what was not loaded, as sentences for the user; empty when everything was.

    Raises:
        CheckpointError: not a weights file, or weights of another model, listing names and shapes.
    """
    path = find_weights(path)
    checkpoint = read_checkpoint(path)
    weights = checkpoint.weights
    try:
        return _load_all_that_fits(model, weights, path, backbone, positions)
    except CheckpointError as error:
        raise CheckpointError(f"{path}{misfit(checkpoint, model, error)}") from error


def _load_all_that_fits(
    model: nn.Module, weights: Mapping[str, Tensor], path: Path, backbone: nn.Module | None, positions: str
) -> list[str]:
    if backbone is None or backbone is model:
        return _load(model, weights, path, positions)
    told = _load(backbone, weights, path, positions, within=True)
    taken, others = _layers_that_fit(model, backbone, weights)
    if not taken:
        return [*told, f"{path}: only the backbone was taken from it; the rest starts from random weights."]
    model.load_state_dict(taken, strict=False)
    if others:
        shown = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
        told.append(f"{path}: layers that do not fit here start from random weights: {shown}.")
    return told


def _layers_that_fit(
    model: nn.Module, backbone: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Of the layers around the backbone: the tensors of those that ``weights`` has alike, the names of the others."""
    inside = next(f"{name}." for name, part in model.named_modules() if part is backbone)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, x in model.state_dict().items():
        if not key.startswith(inside):
            layers.setdefault(key.rpartition(".")[0], {})[key] = x
    taken: dict[str, Tensor] = {}
    others = []
    for name, own in layers.items():
        if all(key in weights and weights[key].shape == x.shape for key, x in own.items()):
            taken |= {key: weights[key] for key in own}
            if kinds := wrong_kinds(own, taken):
                raise CheckpointError(f"these weights do not fit: {', '.join(kinds[:SHOWN])}")
        else:
            others.append(name)
    return taken, others


def _load(
    model: nn.Module, weights: Mapping[str, Tensor], path: Path, positions: str, *, within: bool = False
) -> list[str]:
    own = model.state_dict()
    prefixes = _classifier_prefixes(model)
    head = tuple(name for name in own if prefixes and name.startswith(prefixes))
    weights = _within(weights, [name for name in own if name not in head])
    # A model without a classifier leaves that of the file alone.
    left_out = () if head else tuple(f"{prefix}{kind}" for prefix in prefixes for kind in ("weight", "bias"))
    of_maps: dict[str, Tensor] = {}
    if within and family_of(model) is not None:  # a classifier has a norm after the last map, and none for each map
        left_out += tuple(name for name in ("norm.weight", "norm.bias") if name not in own)
        norms: tuple[str, ...] = getattr(model, "not_in_classifiers", ())
        of_maps = {name: x for name, x in own.items() if name.startswith(norms)}
    elif within:
        parts = {name.partition(".")[0] for name in own}
        left_out += tuple(name for name in weights if name.partition(".")[0] not in parts)
    first = _first_layers(model)
    try:
        if family_of(model) is not None:
            replaceable = (*head, *left_out, *of_maps, *first)
            weights = of_maps | convert(model, weights, positions=positions, replaceable=replaceable)
        weights = {name: value for name, value in weights.items() if name not in left_out}
        told = _adapt_channels(weights, {name: own[name] for name in first if name in own}, path)
        mismatched = [name for name in head if name not in weights or weights[name].shape != own[name].shape]
        kept = {name: own[name] for name in head} if mismatched else {}
        if kinds := wrong_kinds(own, {**weights, **kept}):
            raise CheckpointError(f"these weights do not fit: {', '.join(kinds[:SHOWN])}")
        model.load_state_dict({**weights, **kept}, strict=True)
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(str(error)) from error
    if not mismatched:
        return told
    was = next((f" with {len(weights[name])} outputs" for name in mismatched if name in weights), "")
    return [*told, f"{path}: its head{was} does not fit here; a new one starts from random weights."]


def _first_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights that see the channels of the images."""
    names = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    return tuple(f"{name}.weight" for name in ([names] if isinstance(names, str) else names))


def _adapt_channels(weights: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> list[str]:
    """Make first layers of other channels fit, in ``weights``; returns what is to be told."""
    told = []
    for name, wanted in own.items():
        found = weights.get(name)
        if found is None or found.dim() != 4 or found.shape[1] == wanted.shape[1]:
            continue
        weights[name] = adapt_input_conv(wanted.shape[1], found, found.shape[1])
        told.append(f"{path}: its first layer, of {found.shape[1]} channels, was adapted to {wanted.shape[1]}.")
    return told


def _within(weights: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """The part of ``weights`` that has all the ``names`` behind one prefix, as in a model around a backbone."""
    first, *others = names
    prefixes = [name.removesuffix(first) for name in weights if name.endswith(f".{first}")]
    found = [prefix for prefix in prefixes if all(prefix + name in weights for name in others)]
    if first in weights or len(found) != 1:
        return weights
    return {name.removeprefix(found[0]): value for name, value in weights.items() if name.startswith(found[0])}


def _classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names of the classifier's parameters begin; a model may have several (distilled ones) or none."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
