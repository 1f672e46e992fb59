"""Parameters, multiply-adds and activation memory of any registered model at any size, without running it.

The model is built and called on the meta device, where tensors have shapes and no content, so that a base model at
1248 x 1248 pixels costs a second and no memory.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.analysis.counting import LiveBytes, MacCounter, saved_bytes
from vision_ssm.errors import ConfigError, VisionSSMError
from vision_ssm.families import family_of, named
from vision_ssm.models.registry import create_model, is_ours

__all__ = ["Cost", "LayerCost", "arguments_for", "build_for_size", "cost", "own_size_cost"]


@dataclass(frozen=True)
class LayerCost:
    """One module of the model with everything inside it."""

    name: str
    kind: str
    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """What one forward (and, for the memory of training, backward) pass of a batch takes.

    ``macs`` are multiply-adds as the model's published figure counts them; ``macs_all`` counts every matrix product,
    convolution, attention and scan that is executed, the same way for every family. They differ for this library's
    families, see docs/cost.md. Both are for the whole batch.

    ``training_bytes`` is what autograd keeps from forward to backward (the input batch included; weights, gradients
    and optimiser state not). ``inference_bytes`` is the most that results of operations occupy at one time during
    forward without gradients, the input included; temporaries inside a single operation are not seen. Both are for
    float32 and exclude the ``parameter_bytes``.
    """

    model: str
    input_size: tuple[int, int, int, int]
    params: int
    macs: int
    macs_all: int
    scan_macs: int
    parameter_bytes: int
    training_bytes: int
    inference_bytes: int
    by_layer: tuple[LayerCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@moved.arguments
def cost(model: str | nn.Module, img_size: int | tuple[int, int] | None = None, *, batch_size: int = 1) -> Cost:
    """Compute what a model costs.

    Args:
        model: the name of any model registered with timm or here, or a module taking images [B, C, H, W], alone or as
            the first of what its ``call_for(images)`` returns.
        img_size: side, or (height, width), in pixels; None takes the model's own. A model given by name is built for
            this size, so a position table has as many rows as that size needs.
        batch_size: images per forward pass.

    Raises:
        ConfigError: unknown model (with the nearest name), sizes below 1, or a size the model cannot take.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if size is not None and min(size) < 1:
        raise ConfigError(f"img_size must be positive, got {size[0]} x {size[1]}")
    name = model if isinstance(model, str) else type(model).__name__
    built = _on_meta(model, size) if isinstance(model, str) else copy.deepcopy(model).to("meta")
    config = getattr(built, "pretrained_cfg", {})
    channels = getattr(built, "in_chans", None) or config.get("input_size", (3,))[0]
    height, width = size or config.get("input_size", (3, 224, 224))[1:]
    try:
        return _measure(name, built, torch.empty(batch_size, channels, height, width, device="meta"))
    except VisionSSMError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:  # timm's families refuse a size in these ways
        raise ConfigError(f"{name} cannot take images of {height} x {width} pixels: {error}") from error


def build_for_size(name: str, size: tuple[int, int] | None) -> nn.Module:
    """Build a registered model for images of ``size`` (height, width) on torch's default device, with random weights.

    Models of timm that are bound to a size are built for it, not resized: Swin's ``set_input_size`` would scale the
    windows along, which is another model. Those that take any size are built as they are.

    Raises:
        ConfigError: unknown model, with the nearest name, or a size that it refuses at construction.
    """
    if is_ours(name):
        return create_model(name, img_size=size)
    with torch.device("meta"):
        bound = hasattr(create_model(name), "set_input_size")
    return create_model(name, img_size=size if bound else None)


def arguments_for(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Return what one call of a model takes for these images, where it takes more: its ``call_for`` then says so."""
    call_for: Any = getattr(model, "call_for", None)
    return (images,) if call_for is None else tuple(call_for(images))


def own_size_cost(name: str) -> tuple[tuple[int, int], int, int]:
    """Return a model's own input size (height, width), its parameters and its multiply-adds as `Cost` counts them."""
    model = _on_meta(name, None).eval()
    channels, height, width = model.pretrained_cfg["input_size"]  # type: ignore[index]
    with torch.no_grad(), MacCounter(model) as counter:
        model(*arguments_for(model, torch.empty(1, channels, height, width, device="meta")))
    return (height, width), _parameters(model), _as_published(model, counter)


def _on_meta(name: str, size: tuple[int, int] | None) -> nn.Module:
    with torch.device("meta"):
        return build_for_size(name, size)


def _measure(name: str, model: nn.Module, images: Tensor) -> Cost:
    fixed = [*model.parameters(), *model.buffers()]
    call = arguments_for(model, images)
    model.eval()
    with torch.no_grad(), MacCounter(model) as counter:
        model(*call)
    with torch.no_grad(), LiveBytes(fixed) as live:
        model(*call)
    model.train()
    with saved_bytes(fixed) as saved:
        model(*call)
    executed = counter.of()
    layers = tuple(
        LayerCost(path, type(module).__name__, _parameters(module), counter.within(path, module).total)
        for path, module in model.named_modules()
        if path
    )
    size = images.numel() * images.element_size()
    return Cost(
        model=name,
        input_size=(images.shape[0], images.shape[1], images.shape[2], images.shape[3]),
        params=_parameters(model),
        macs=_as_published(model, counter),
        macs_all=executed.total,
        scan_macs=executed.scans,
        parameter_bytes=sum(x.numel() * x.element_size() for x in fixed),
        training_bytes=saved[0],
        inference_bytes=live.peak + size,
        by_layer=layers,
    )


def _as_published(model: nn.Module, counter: MacCounter) -> int:
    """Count as the published figures of the model's family do; what belongs to no family counts as executed."""
    total = counter.of().total
    for path, module in model.named_modules():
        family = family_of(module)
        if family is not None and family.macs:
            total += named(family.macs)(counter, path, module)
    return total


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
