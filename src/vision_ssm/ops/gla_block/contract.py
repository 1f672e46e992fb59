"""What every form of a block of gated linear attention is given: its weights and its form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vision_ssm.ops.add_norm.contract import NORMS, NormWeights
from vision_ssm.ops.gate import show

__all__ = ["NAMES", "OPTIONAL", "GlaBlock"]


class GlaBlock(NamedTuple):
    """One block on a map of C channels, H heads: what it learns, and its form.

    Attributes:
        norm: before the mixer, over C channels.
        conv: taps of the depthwise convolution, [C, 1, 3, 3].
        qkv_proj: [2C, C], to queries, keys (C / 2 each) and values (C), head after head.
        gate_down: [R, C].
        gate_up: [C, R], to the gates of the forward direction, then those of the backward one.
        gate_bias: [C].
        g_proj: [C, C], to the gate between attention and local path.
        g_bias: [C].
        g_norm: RMS norm of what is attended, over the C / H channels of a head.
        l_norm: the same of the local path.
        o_proj: [C, C].
        norm2: before the MLP, over C channels.
        fc1: [2I, C], to both halves of the MLP's hidden values.
        fc2: [C, I].
        heads: H.
        conv_act: SiLU after the convolution.
        out_act: SiLU before o_proj.
        scale: of the attention's sum over both directions.
    """

    norm: NormWeights
    conv: Tensor
    qkv_proj: Tensor
    gate_down: Tensor
    gate_up: Tensor
    gate_bias: Tensor
    g_proj: Tensor
    g_bias: Tensor
    g_norm: NormWeights
    l_norm: NormWeights
    o_proj: Tensor
    norm2: NormWeights
    fc1: Tensor
    fc2: Tensor
    heads: int
    conv_act: bool
    out_act: bool
    scale: float

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return what it learns, in the order of NAMES."""
        norms = (self.norm.weight, self.norm.bias, self.norm2.weight, self.norm2.bias)
        return (*norms, self.g_norm.weight, self.l_norm.weight, *self[1:8], self.o_proj, self.fc1, self.fc2)

    def holding(self, tensors: Sequence[Any]) -> GlaBlock:
        """Return a block of the same form that has learnt these, in the order of NAMES."""
        norm, bias, norm2, bias2, g_norm, l_norm, *products, o_proj, fc1, fc2 = tensors
        return self._replace(
            norm=self.norm._replace(weight=norm, bias=bias),
            g_norm=self.g_norm._replace(weight=g_norm),
            l_norm=self.l_norm._replace(weight=l_norm),
            norm2=self.norm2._replace(weight=norm2, bias=bias2),
            **dict(zip(GlaBlock._fields[1:8], products, strict=True)),
            o_proj=o_proj,
            fc1=fc1,
            fc2=fc2,
        )

    def misfit(self, channels: int) -> str | None:
        """Return what does not fit in a block for maps of so many channels, C, or None."""
        shapes = [None if w is None else w.shape for w in self.tensors()]
        found = dict(zip(NAMES, shapes, strict=True))
        down, fc1 = found["gate_down"], found["fc1"]
        if channels < 1 or self.heads < 1 or channels % (2 * self.heads):
            return f"{channels} channels do not divide into {self.heads} heads of an even number of channels each"
        if down is None or len(down) != 2 or down[0] < 1 or fc1 is None or len(fc1) != 2 or fc1[0] < 2 or fc1[0] % 2:
            return (
                "a block of gated linear attention takes gate_down [R, C] and fc1 [2I, C] with a value of each at "
                f"least, got {show(down)} and {show(fc1)}"
            )
        rank, hidden, values, square = down[0], fc1[0] // 2, channels // self.heads, (channels, channels)
        expected = (
            *((channels,),) * 4,
            *((values,),) * 2,
            *((channels, 1, 3, 3), (2 * channels, channels), (rank, channels), (channels, rank), (channels,)),
            *(square, (channels,), square, (2 * hidden, channels), (channels, hidden)),
        )
        for (name, given), wanted in zip(found.items(), expected, strict=True):
            if (given is not None or name not in OPTIONAL) and given != wanted:
                return f"{name} must be {show(wanted)} to fit the map, gate_down and fc1, got {show(given)}"
        return None

    def norms_fit(self) -> bool:
        """Tell whether there are such norms, and those of the heads are RMS norms without a bias."""
        inside = all(norm.kind == "rms" and norm.bias is None for norm in (self.g_norm, self.l_norm))
        return inside and self.norm.kind in NORMS and self.norm2.kind in NORMS


NAMES = (
    *("norm weight", "norm bias", "norm2 weight", "norm2 bias", "g_norm weight", "l_norm weight"),
    *GlaBlock._fields[1:8],
    *("o_proj", "fc1", "fc2"),
)
OPTIONAL = ("norm bias", "norm2 bias")
