"""What this machine offers: versions, devices, the native kernel, and the backends of operators on each device."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vision_ssm.ops import BackendStatus, explain, native, operators

__all__ = ["DeviceReport", "Environment", "environment"]

PACKAGES = ("vision-ssm", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "triton", "scikit-learn")


@dataclass(frozen=True)
class DeviceReport:
    """One device and what the backends of every operator say about it."""

    device: str
    description: str
    operators: dict[str, tuple[BackendStatus, ...]]

    @property
    def backends(self) -> tuple[BackendStatus, ...]:
        """What the scan's backends say."""
        return self.operators["scan"]

    @property
    def chosen(self) -> str | None:
        """Name of the backend that scans run on, None when the one asked for cannot run there."""
        return self.chosen_for("scan")

    def chosen_for(self, operator: str) -> str | None:
        """Return the name of the backend that an operator runs on, None when the one asked for cannot run there."""
        return next((backend.name for backend in self.operators[operator] if backend.chosen), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "backends": [asdict(b) for b in self.backends], "chosen": self.chosen}


@dataclass(frozen=True)
class Environment:
    """Everything ``vision-ssm doctor`` shows."""

    versions: dict[str, str | None]  # None: not installed
    system: str
    processor: str
    cores: int
    threads: int  # that torch, and with it the kernel, uses for one operation
    kernel: dict[str, Any]
    variables: dict[str, str]
    devices: tuple[DeviceReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "devices": [device.to_dict() for device in self.devices]}


def environment() -> Environment:
    """Look at this machine.

    Raises:
        ConfigError: the environment variable VISION_SSM_BACKEND names no backend.
    """
    return Environment(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        system=platform.platform(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        kernel=_kernel(),
        variables={name: os.environ[name] for name in ("VISION_SSM_BACKEND", "OMP_NUM_THREADS") if name in os.environ},
        devices=tuple(
            DeviceReport(name, text, {operator: tuple(explain(operator, name)) for operator in operators()})
            for name, text in _devices()
        ),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _kernel() -> dict[str, Any]:
    if native.MISSING is not None:
        return {"loaded": False, "reason": native.MISSING}
    return {"loaded": True, "instruction_set": native.instruction_set(), "runnable": native.runnable()}


def _devices() -> list[tuple[str, str]]:
    found = [("cpu", _processor())]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    return found
