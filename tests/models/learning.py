"""Twelve updates on one batch, by which every parameter must hear of the loss and the loss must halve."""

from __future__ import annotations

import torch
from torch import nn


def check_learning(model: nn.Module) -> None:
    """Train a classifier of ten classes on sixteen random images of 32 pixels."""
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert losses[-1] < 0.5 * losses[0]
