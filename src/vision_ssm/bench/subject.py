"""Turning a case into something that can be called: one pass of a model over one batch of random images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from vision_ssm.analysis.model_cost import arguments_for, build_for_size
from vision_ssm.bench.settings import Case, split_variant
from vision_ssm.errors import ConfigError, VisionSSMError
from vision_ssm.models.registry import require_model
from vision_ssm.weights.exported import is_exported, read_exported

__all__ = ["FAILURES", "prepare", "reason", "require_subject", "synchronise"]

# The ways in which models, timm's among them, answer an impossible size, dtype or mode, or too little memory.
FAILURES = (VisionSSMError, AssertionError, IndexError, MemoryError, RuntimeError, TypeError, ValueError)


def prepare(case: Case) -> Callable[[], None]:
    """Build the model with random weights, and a batch; return what runs one pass.

    In training mode one pass is forward, backward of the mean square of the logits, and dropping the gradients.

    Raises:
        FAILURES: the case is impossible; see `reason`.
    """
    name, variant = split_variant(case.model)
    torch.manual_seed(0)
    if is_exported(name):
        return _exported(name, case)
    with torch.device(case.device):
        model = build_for_size(name, (case.height, case.width))
    dtype = getattr(torch, case.dtype)
    model = model.to(dtype).train(case.mode == "training")
    if variant == "unfused":
        _unfuse(model, name)
    config: Any = model.pretrained_cfg
    images = torch.randn(case.batch, config["input_size"][0], case.height, case.width, device=case.device).to(dtype)

    call = arguments_for(model, images)

    def infer() -> None:
        with torch.inference_mode():
            model(*call)

    def train() -> None:
        losses = [logits.float().square().mean() for logits in tree_leaves(model(*call))]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    return train if case.mode == "training" else infer


def require_subject(name: str) -> None:
    """Raise ConfigError or CheckpointError unless a model of that name is registered, or an exported file opens."""
    if is_exported(name):
        read_exported(name)
    else:
        require_model(name)


def _exported(name: str, case: Case) -> Callable[[], None]:
    asked = (case.mode, case.dtype, case.device)
    if asked != ("inference", "float32", "cpu"):
        raise ConfigError(f"an exported file runs inference in float32 on the cpu only, got {', '.join(asked)}")
    file = read_exported(name)
    channels = file.info.preprocessing.input_size[0]
    images = torch.randn(case.batch, channels, case.height, case.width)
    file(images)

    def infer() -> None:
        file(images)

    return infer


def synchronise(device: str) -> None:
    """Wait until the device has done everything; a CPU always has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def reason(error: BaseException) -> str:
    """Say in one line why a case failed."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 240 else f"{text[:239]}…"
    starved = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    return f"out of memory: {text}" if starved else text


def _unfuse(model: nn.Module, name: str) -> None:
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    if not fused:
        raise ConfigError(f"{name} has no fused attention to turn off, so {name}+unfused would be {name}")
    for module in fused:
        module.fused_attn = False  # timm's switch, one per attention
