"""How EfficientVMamba's published multiply-adds count."""

from __future__ import annotations

from torch import nn

from vision_ssm.analysis.counting import MacCounter, inner_path
from vision_ssm.layers.efficient_ss2d import AtrousSSM

__all__ = ["published_less_executed"]


def published_less_executed(counter: MacCounter, path: str, model: nn.Module) -> int:
    """What to add to the multiply-adds executed in the EfficientVMamba at ``path`` for those that are published.

    The figures come from fvcore, which counts normalisations too. They count each token's projections with its own
    group's weights only; what is executed multiplies it by those of all four.
    """
    difference = counter.within(path, model).norms
    for name, module in model.named_modules():
        if isinstance(module, AtrousSSM):
            ssm = counter.of(inner_path(path, name))
            difference -= (ssm.total - ssm.scans) - (ssm.total - ssm.scans) // module.directions
    return difference
