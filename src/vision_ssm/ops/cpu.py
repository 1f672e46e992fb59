"""placeholder until the kernel lands"""
from __future__ import annotations
import torch
from torch import Tensor
from vision_ssm.ops.contract import ScanCall, ScanGradients

class CpuBackend:
    name = "cpu"
    missing: str | None = "the kernel library was not built"
    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return self.missing
    def forward(self, call: ScanCall, save_states: bool) -> tuple[Tensor, Tensor]: raise RuntimeError
    def backward(self, call: ScanCall, states: Tensor, grad: Tensor) -> ScanGradients: raise RuntimeError
