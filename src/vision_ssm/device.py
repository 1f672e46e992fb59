"""Which device a name means on this machine, and the precision that a model runs in there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["AMP_TYPES", "autocast", "choose_device"]

AMP_TYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return a device that this machine has; None or ``auto`` takes a GPU if there is one, else the CPU.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; expected cpu, cuda, cuda:1, mps or auto.") from error
    if chosen.type not in ("cpu", "meta") and (chosen.index or 0) >= _device_count(chosen.type):
        raise ConfigError(f"device {str(chosen)!r} is not available on this machine; use cpu or auto.")
    return chosen


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Return the context in which the model runs: ``none``, ``bf16`` or ``fp16``.

    Raises:
        ConfigError: unknown precision.
    """
    if amp not in AMP_TYPES:
        raise ConfigError(f"unknown amp {amp!r}, expected one of {', '.join(AMP_TYPES)}.{suggestion(amp, AMP_TYPES)}")
    dtype = AMP_TYPES[amp]
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


def _device_count(kind: str) -> int:
    module = torch.get_device_module(kind)
    return int(module.device_count()) if module.is_available() else 0
