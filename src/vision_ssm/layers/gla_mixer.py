"""ViG's token mixer: gated linear attention both ways along the rows of a map, beside a local path.

    l = DWConv3x3(x)                                             x, l [B, H, W, C]; ViG-T: SiLU of it
    q, k, v = W_q l, W_k l, W_v l                                [B, L, C/2], [B, L, C/2], [B, L, C]
    α_o = exp(logsigmoid(W_o W_a l + b_o) / 16)                  o in (forward, backward), through 16 values
    S_o[t] = diag(α_o[t]) S_o[t ∓ 1] + k[t] v[t]ᵀ                per head
    a = RMSNorm(½ scale sum over o of S_o[t]ᵀ q[t])              per head, scale = 1 / sqrt(key channels)
    g = sigmoid(W_g l + b_g)
    mixer(x) = W_out (g ⊙ a + (1 - g) ⊙ RMSNorm(l))              per head; ViG-T: SiLU of what is in brackets

Source: ViG, arXiv:2405.18425, and its code (hustvl/ViG at dfb9d32); the recurrence is ops/gla.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.layers.norms import RMSNorm
from vision_ssm.layers.options import check_count, check_flags
from vision_ssm.layers.untouched import built_of
from vision_ssm.ops import Traversal, gla

__all__ = ["EPS", "GAIN", "RANK", "GLAMixer", "heads_of", "log_gates"]

RANK = 16  # values that the gates of a token come from
TEMPERATURE = 16  # the sixteenth root of a sigmoid: gates begin near 1
EPS = 1e-6
GAIN = 2**-2.5


def log_gates(logits: Tensor) -> Tensor:
    """Return logarithms of gates, logsigmoid(logits) / 16, in float32 at least: rounded, they would add up wrongly."""
    return F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / TEMPERATURE


def heads_of(channels: int, head_dim: int) -> int:
    """Return the number of heads of ``channels``, ``head_dim`` for each; a narrower map has one head.

    Raises:
        ConfigError: the channels do not divide into heads of an even number.
    """
    check_count("head_dim", head_dim, 2)
    values = min(head_dim, channels)
    if channels % values or values % 2:
        raise ConfigError(
            f"a width of {channels} does not divide into heads of {values} channels, an even number: choose "
            "head_dim or embed_dim so that it does"
        )
    return channels // values


@built_of(
    **dict.fromkeys(("qkv_proj", "gate_down", "gate_up", "g_proj", "o_proj"), nn.Linear),
    **dict.fromkeys(("g_norm", "l_norm"), RMSNorm),
    conv=nn.Conv2d,
)
class GLAMixer(nn.Module):
    """Depthwise convolution, projections, gated linear attention both ways, per-head norms, gate to the local path.

    Args:
        channels: C, an even number.
        head_dim: value channels of a head, of which it has half as many for keys; a narrower map has one head.
        conv_act: SiLU after the convolution.
        out_act: SiLU before the last projection.
        quarter: in evaluation the directions are averaged and halved once more, as published for ViG. The norm behind
            takes the factor back but for its epsilon, a relative difference of 3e-6 in ViG-T's logits.

    Raises:
        ConfigError: the width does not divide into heads.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        conv_act: bool = False,
        out_act: bool = False,
        quarter: bool = False,
    ) -> None:
        super().__init__()
        check_flags(conv_act=conv_act, out_act=out_act, quarter=quarter)
        self.heads = heads_of(channels, head_dim)
        values = channels // self.heads
        self.keys = values // 2
        self.conv_act, self.out_act, self.quarter = conv_act, out_act, quarter
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.qkv_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.gate_down = nn.Linear(channels, RANK, bias=False)
        self.gate_up = nn.Linear(RANK, channels)
        self.g_proj = nn.Linear(channels, channels)
        self.g_norm, self.l_norm = RMSNorm(values, EPS), RMSNorm(values, EPS)
        self.o_proj = nn.Linear(channels, channels, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the published initial values; ViG-H draws those of the linear layers anew."""
        for layer in (self.conv, self.qkv_proj, self.gate_down, self.gate_up, self.g_proj, self.o_proj):
            nn.init.xavier_uniform_(layer.weight, gain=GAIN)
            if layer.bias is not None:
                layer.bias.zero_()

    @property
    def scale(self) -> float:
        """Factor of the attention's sum over both directions."""
        average = 0.25 if self.quarter and not self.training else 0.5
        return float(average * self.keys**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map x [B, H, W, C]; returns the same shape."""
        shape = x.shape
        # Channel-last tokens are an image in channels_last format, so both permutes are views.
        local = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        if self.conv_act:
            local = F.silu(local)
        q, k, v = self.qkv_proj(local).split([shape[-1] // 2, shape[-1] // 2, shape[-1]], dim=-1)
        attended = self.g_norm(self._by_head(self._attend(q, k, v, self.gate_up(self.gate_down(local)))))
        beside = self.l_norm(self._by_head(local))
        gate = self._by_head(torch.sigmoid(self.g_proj(local)))
        mixed = (gate * attended + (1 - gate) * beside).flatten(-2)
        result: Tensor = self.o_proj(F.silu(mixed) if self.out_act else mixed)
        return result.view(shape)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
        """Return the average [B, L, C] of both directions."""
        walks = [Traversal.sequence(q.shape[1], reverse=reverse) for reverse in (False, True)]
        return gla(
            q,
            k,
            v,
            torch.unflatten(log_gates(gates), -1, (len(walks), -1)).movedim(2, 1),
            heads=self.heads,
            traversals=walks,
            scale=self.scale,
        )

    def _by_head(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1))
