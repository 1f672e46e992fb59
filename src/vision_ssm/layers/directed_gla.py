"""DiG's token mixer: gated linear attention along one walk over a map, gated by its input.

    q, k, v, g = W_q x, W_k x, W_v x, W_g x                      x [B, H, W, C]; q, k [B, L, C/2], v, g [B, L, C]
    α = exp(logsigmoid(W_α W_a x + b) / 16)                      through 16 values
    S[t] = diag(α[t]) S[t-1] + k[t] v[t]ᵀ                        per head; t in the order of the walk
    mixer(x) = W_out (RMSNorm(scale S[t]ᵀ q[t]) ⊙ SiLU(g))       norm per head, scale = 1 / sqrt(key channels)

The four orders are rows, rows from the last token, columns, columns from the last token. The published code turns the
sequence over and over, so that its walks all begin at the first token; here the tokens stay, and the walks differ.

Source: DiG, arXiv:2405.18428, and its code (hustvl/DiG at e3ac0ba, module_dig.py, models_dig.py); the recurrence is
ops/gla.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.layers.gla_mixer import EPS, GAIN, RANK, heads_of, log_gates
from vision_ssm.layers.norms import RMSNorm
from vision_ssm.ops import Traversal, gla

__all__ = ["ORDERS", "DirectedGLA", "Order"]


class Order(NamedTuple):
    """One of the four orders in which the tokens of a map are visited."""

    columns: bool
    reverse: bool

    def walk(self, height: int, width: int) -> Traversal:
        """Return the walk over a row-major map of that size."""
        walk = Traversal.columns if self.columns else Traversal.rows
        return walk(height, width, reverse=self.reverse)

    def turned(self, kernel: Tensor) -> Tensor:
        """Return the kernel [..., k, k] that does to a map what ``kernel`` does to the map laid out in this order."""
        turned = kernel.mT if self.columns else kernel
        return turned.flip(-2, -1) if self.reverse else turned

    def meeting(self, other: Order, x: Tensor) -> Tensor:
        """Return x [B, H, W, C] rearranged: where this order is at a step, it has the token of ``other``'s same step.

        Both begin at the same end. On a square map, those that differ in ``columns`` mirror it in its diagonal.
        """
        if self.columns == other.columns:
            return x
        batch, height, width, channels = x.shape
        if other.columns:
            return x.transpose(1, 2).reshape(batch, height, width, channels)
        return x.reshape(batch, width, height, channels).transpose(1, 2)


ORDERS = (Order(False, False), Order(False, True), Order(True, False), Order(True, True))
"""In the order in which the blocks of a column take them."""


class DirectedGLA(nn.Module):
    """Projections, gated linear attention along one walk, a norm for each head, a gate by the input.

    Args:
        channels: C, an even number.
        head_dim: value channels of a head, of which it has half as many for keys; a narrower map has one head.
        order: of the tokens.

    Raises:
        ConfigError: the width does not divide into heads.
    """

    def __init__(self, channels: int, *, head_dim: int, order: Order) -> None:
        super().__init__()
        self.order, self.heads = order, heads_of(channels, head_dim)
        self.q_proj = nn.Linear(channels, channels // 2, bias=False)
        self.k_proj = nn.Linear(channels, channels // 2, bias=False)
        self.v_proj = nn.Linear(channels, channels, bias=False)
        self.g_proj = nn.Linear(channels, channels, bias=False)
        self.gate_down = nn.Linear(channels, RANK, bias=False)
        self.gate_up = nn.Linear(RANK, channels // 2)
        self.norm = RMSNorm(channels // self.heads, EPS)
        self.o_proj = nn.Linear(channels, channels, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the published initial values."""
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.gate_down, self.gate_up, self.o_proj):
            nn.init.xavier_uniform_(layer.weight, gain=GAIN)
        self.gate_up.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map x [B, H, W, C]; returns the same shape."""
        _, height, width, _ = x.shape
        tokens = x.flatten(1, 2)
        attended = gla(
            self.q_proj(tokens),
            self.k_proj(tokens),
            self.v_proj(tokens),
            log_gates(self.gate_up(self.gate_down(tokens)))[:, None],
            heads=self.heads,
            traversals=[self.order.walk(height, width)],
        )
        normalised = self.norm(torch.unflatten(attended, -1, (self.heads, -1))).flatten(-2)
        result: Tensor = self.o_proj(normalised * F.silu(self.g_proj(tokens)))
        return result.view(x.shape)
