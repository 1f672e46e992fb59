"""How Vim's published multiply-adds count."""

from __future__ import annotations

from torch import nn

from vision_ssm.analysis.counting import MacCounter, inner_path
from vision_ssm.layers import VimMixer

__all__ = ["published_less_executed"]


def published_less_executed(counter: MacCounter, path: str, model: nn.Module) -> int:
    """What to add to the multiply-adds executed in the Vim at ``path`` for those that are published; negative.

    No Vim paper prints multiply-adds; the 1.5 G of Vim-Ti and the 5.1 G of Vim-S in use come from LocalMamba's tables,
    whose counter (hunto/LocalMamba, classification/lib/models/local_vim.py, see its issue 36) takes the convolution and
    the projections of a mixer once, though each direction has its own, and a scan as 5·L·C·N + 2·L·C per direction.
    The L·D that it adds for each normalisation (0.1 %) is left out here.
    """
    difference = 0
    for name, module in model.named_modules():
        if not isinstance(module, VimMixer):
            continue
        place = inner_path(path, name)
        mixer, ssm = counter.of(place), counter.of(f"{place}.ssm")
        states, projections = module.ssm.states, module.ssm.x_proj_weight.shape[0]
        difference -= mixer.taps - mixer.taps // module.conv_weight.shape[0]
        products = ssm.total - ssm.scans - ssm.taps
        difference -= products - products // projections
        difference -= ssm.scans - ssm.scans * (5 * states + 2) // (9 * states + 1)
    return difference
