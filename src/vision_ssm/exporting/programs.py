"""From a model to a program of torch's own operations, with sizes that may be left open."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.modules import module as torch_module

from vision_ssm.errors import ConfigError
from vision_ssm.exporting.operators import GlaSteps, ScanSteps, decompositions
from vision_ssm.tasks.exported import Form

__all__ = ["INPUT", "check_exportable", "example", "program", "quiet", "step_of", "traced"]

MOST_IMAGES, MOST_STEPS = 4096, 4096
KNOWN = ("vision_ssm", "timm", "torch", "torchvision")
"""Packages whose modules may be exported: what those of others do, nobody here has checked."""

INPUT = "images"
"""Name of what a file takes."""


def check_exportable(model: nn.Module) -> None:
    """Raise ConfigError for a model that is in training mode, has hooks, or is of a class that is not known here."""
    hooked = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    if hooked:
        raise ConfigError("hooks on all modules are set, which a file cannot hold; remove them before the export.")
    for name, module in model.named_modules():
        place = f"{name or 'the model'} ({type(module).__name__})"
        package = type(module).__module__.partition(".")[0]
        if package not in KNOWN:
            raise ConfigError(f"{place} is of a class of {package}; only modules of {', '.join(KNOWN)} are exported.")
        if module.training:
            raise ConfigError(f"{place} is in training mode; call model.eval() before the export.")
        if module._forward_hooks or module._forward_pre_hooks:
            raise ConfigError(f"{place} has hooks, which a file cannot hold; remove them before the export.")
        if "forward" in vars(module):
            raise ConfigError(f"forward of {place} was replaced; only models as they were built are exported.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ConfigError(f"{name} is {tensor.dtype}; models are exported in float32: call model.float().")


def step_of(model: nn.Module) -> int:
    """Return what the sides of images of an open size are multiples of: the largest stride of the model's maps."""
    infos: Any = getattr(model, "feature_info", None)
    if not isinstance(infos, Sequence) or not infos:
        raise ConfigError(
            f"{type(model).__name__} does not tell the strides of its maps (feature_info), so its size cannot be left "
            "open; leave size out of dynamic."
        )
    return max(int(info["reduction"]) for info in infos)


def example(size: tuple[int, int], channels: int, dynamic: Sequence[str]) -> Tensor:
    """Return images to trace with: of the size that is exported, two where their number is open."""
    return torch.randn(2 if "batch" in dynamic else 1, channels, *size, generator=torch.Generator().manual_seed(0))


def program(
    form: Form,
    images: Tensor,
    dynamic: Sequence[str],
    step: int,
    scan_steps: ScanSteps,
    gla_steps: GlaSteps,
) -> ExportedProgram:
    """Trace a form and take this library's operators apart.

    Args:
        form: of a model on the CPU, in evaluation mode.
        images: see `example`.
        dynamic: what is left open.
        step: heights and widths are multiples of it, where the size is open.
        scan_steps: what stands for the recurrence of a scan, see `vision_ssm.exporting.operators`.
        gla_steps: of gated linear attention.

    Raises:
        ConfigError: the model cannot be traced with what is left open.
    """
    table: dict[Any, Any] = decompositions(scan_steps, gla_steps)
    einsum = torch.ops.aten.einsum.default  # formats would see its letters, and not that it is a product
    table[einsum] = torch.export.default_decompositions()[einsum]
    whole = traced(form, images, dynamic, step)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apart: ExportedProgram = whole.run_decompositions(table)
    return apart


def traced(form: Form, images: Tensor, dynamic: Sequence[str], step: int) -> ExportedProgram:
    """Trace a form with this library's operators as they are; arguments and errors are those of `program`."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found: ExportedProgram = torch.export.export(form.module, (images,), dynamic_shapes=(_open(dynamic, step),))
        except (torch._dynamo.exc.UserError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:300]
            raise ConfigError(f"the model cannot be traced with {_words(dynamic)} left open: {told}") from error
    return found


def _open(dynamic: Sequence[str], step: int) -> Mapping[int, Any] | None:
    axes: dict[int, Any] = {}
    if "batch" in dynamic:
        axes[0] = Dim("batch", min=1, max=MOST_IMAGES)
    if "size" in dynamic:
        axes[2] = step * Dim("rows", min=2, max=MOST_STEPS)
        axes[3] = step * Dim("columns", min=2, max=MOST_STEPS)
    return axes or None


def _words(dynamic: Sequence[str]) -> str:
    return " and ".join(dynamic) or "nothing"


@contextmanager
def quiet(logger: str | None = None) -> Iterator[None]:
    """Keep from the user's terminal what exporters and quantisers tell their own developers.

    Args:
        logger: name of the one that they write to; None for the root.
    """
    speaker = logging.getLogger(logger)
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        speaker.setLevel(level)
