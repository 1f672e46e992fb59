"""VMamba's token mixer SS2D: projected, convolved and scanned across the map along four routes.

    u = σ(DWConv3x3(Linear_in(x)))                               x [B, H, W, C] to u [B, H, W, E], σ = SiLU
    y = sum over k = 1..4 of SSM_k(u along route k)              rows, columns, and both from their ends
    SS2D(x) = Linear_out(LayerNorm(y))                           first VMamba: ⊙ σ(z), z = Linear_z(x)

Source: VMamba, arXiv:2401.10166, section 4.2 and fig. 3; the recurrence is layers/ssm.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers.create_act import get_act_layer
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.layers.one_call import halves
from vision_ssm.layers.options import check_choice, check_flags, checked_inner
from vision_ssm.layers.ssm import SelectiveSSM
from vision_ssm.ops import Traversal

__all__ = ["ACTIVATIONS", "OUT_NORMS", "SCAN_PATTERNS", "SS2D"]

ROUTES = 4
EPS = 1e-5

SCAN_PATTERNS = ("cross", "unidirectional", "bidirectional", "cascade")
OUT_NORMS = ("layer", "none", "conv", "layer_conv", "softmax", "sigmoid")
ACTIVATIONS = ("silu", "gelu", "relu", "sigmoid")


class SS2D(nn.Module):
    """in_proj, depthwise 3 x 3 convolution, activation, four scans, norm, optional gate, out_proj; channel-last.

    Every pattern has four sets of scan parameters, so weights of one fit all:

    * 'cross': along the rows, down the columns, and both ways back.
    * 'unidirectional': four times along the rows.
    * 'bidirectional': twice along the rows, twice back.
    * 'cascade': each row on its own, there and back, then each column on its own, there and back, with a LayerNorm
      without parameters before either. As published, what the way back yields is not turned round before it is added:
      the output for the last pixel of a row is added at the first.

    Args:
        channels: C, the width of the tokens; the step rank is ceil(C / 16).
        states: N per channel.
        ratio: inner width over C.
        scan_pattern: one of the above.
        gate: in_proj makes a second half z, and the normalised scan is multiplied by act(z).
        conv: have the depthwise convolution; the activation stays without it.
        conv_bias: give it a bias.
        act_layer: 'silu', 'gelu', 'relu' or 'sigmoid'.
        out_norm: what follows the scan. 'layer': LayerNorm; 'none'; 'conv': depthwise 3 x 3 convolution without bias;
            'layer_conv': both; 'softmax': over all positions, per channel; 'sigmoid'.

    Raises:
        ConfigError: a value is unknown or out of range, or two options contradict each other.

    Source: VMamba, arXiv:2401.10166, section 4.2 and tables 10 to 15, and its code (MzeroMiko/VMamba at 2ed52ead,
    classification/models/vmamba.py, there spelt as suffixes of ``forward_type``).
    """

    def __init__(
        self,
        channels: int,
        *,
        states: int = 1,
        ratio: float = 1.0,
        scan_pattern: str = "cross",
        gate: bool = False,
        conv: bool = True,
        conv_bias: bool = False,
        act_layer: str = "silu",
        out_norm: str = "layer",
    ) -> None:
        super().__init__()
        for option, value, allowed in (
            ("scan_pattern", scan_pattern, SCAN_PATTERNS),
            ("act_layer", act_layer, ACTIVATIONS),
            ("out_norm", out_norm, OUT_NORMS),
        ):
            check_choice(option, value, allowed)
        check_flags(gate=gate, conv=conv, conv_bias=conv_bias)
        if conv_bias and not conv:
            raise ConfigError("conv_bias=True needs the convolution that conv=False leaves out")
        inner = checked_inner(channels, ratio, states)
        self.inner, self.scan_pattern, self.gate, self.out_norm_kind = inner, scan_pattern, gate, out_norm
        self.in_proj = nn.Linear(channels, 2 * inner if gate else inner, bias=False)
        self.conv = _depthwise(inner, bias=conv_bias) if conv else None
        self.act = get_act_layer(act_layer)()
        self.ssm = SelectiveSSM(inner, directions=ROUTES, states=states, rank=math.ceil(channels / 16))
        self.out_norm = nn.LayerNorm(inner, eps=EPS) if out_norm in ("layer", "layer_conv") else None
        self.out_conv = _depthwise(inner, bias=False) if out_norm in ("conv", "layer_conv") else None
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map x [B, H, W, C]; returns the same shape."""
        height, width = x.shape[1:3]
        x, z = halves(self.in_proj, x) if self.gate else (self.in_proj(x), None)
        if self.conv is not None:
            x = _on_map(self.conv, x)
        u = self.act(x).flatten(1, 2)
        if self.scan_pattern == "cascade":
            y = self._cascade(u, height, width)
        else:
            y = self.ssm(u, None, _routes(self.scan_pattern, height, width))
        if self.out_norm is not None:
            y = self.out_norm(y)
        if self.out_norm_kind == "softmax":
            y = y.softmax(dim=1)
        elif self.out_norm_kind == "sigmoid":
            y = y.sigmoid()
        y = y.view(y.shape[0], height, width, self.inner)
        if self.out_conv is not None:
            y = _on_map(self.out_conv, y)
        result: Tensor = self.out_proj(y if z is None else y * self.act(z))
        return result

    def _cascade(self, u: Tensor, height: int, width: int) -> Tensor:
        """Scan tokens u [B, L, E] within the rows, then what comes of it within the columns."""
        for sets, walk in (((0, 2), Traversal.each_row), ((2, 4), Traversal.each_column)):
            there, back = walk(height, width), walk(height, width, reverse=True)
            normalised = F.layer_norm(u, (self.inner,), eps=EPS)
            u = self.ssm(normalised, None, [there, back.written_as(there)], directions=slice(*sets))
        return u


def _routes(pattern: str, height: int, width: int) -> Sequence[Traversal]:
    """The walks of the four sets of parameters, in the published order."""
    rows, back = Traversal.rows(height, width), Traversal.rows(height, width, reverse=True)
    if pattern == "unidirectional":
        return [rows] * ROUTES
    if pattern == "bidirectional":
        return [rows, rows, back, back]
    columns, up = Traversal.columns(height, width), Traversal.columns(height, width, reverse=True)
    return [rows, columns, back, up]


def _depthwise(channels: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)


def _on_map(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve x [B, H, W, E]: channel-last tokens are an image in channels_last format, so both permutes are views."""
    result: Tensor = conv(x.permute(0, 3, 1, 2))
    return result.permute(0, 2, 3, 1)
