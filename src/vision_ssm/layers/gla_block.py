"""ViG's residual block.

    h = x + mixer(Norm(x))                                       x [B, H, W, C], a map
    y = h + MLP(Norm(h))

The mixer is layers/gla_mixer.py, the MLP layers/gated_mlp.py; dropped paths are left out above. Source: ViG,
arXiv:2405.18425.
"""

from __future__ import annotations

from timm.layers.drop import DropPath
from torch import Tensor, nn

from vision_ssm.layers import one_call
from vision_ssm.layers.gated_mlp import GatedMlp
from vision_ssm.layers.gla_mixer import GLAMixer
from vision_ssm.layers.norms import RMSNorm, StreamLayerNorm
from vision_ssm.layers.untouched import built_of

__all__ = ["GLABlock"]

_NORMS = (RMSNorm, StreamLayerNorm, nn.LayerNorm)


@built_of(norm=_NORMS, mixer=GLAMixer, norm2=_NORMS, mlp=GatedMlp, drop_path=(nn.Identity, DropPath))
class GLABlock(nn.Module):
    """x + DropPath(mixer(norm(x))), then x + DropPath(mlp(norm2(x))).

    Args:
        norm: before the mixer.
        mixer: maps [B, H, W, C] to the same shape.
        norm2: before the MLP.
        mlp: transforms [..., C].
        drop_path: probability of dropping either branch, per image.
    """

    def __init__(
        self, norm: nn.Module, mixer: nn.Module, norm2: nn.Module, mlp: nn.Module, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.mixer, self.norm2, self.mlp = norm, mixer, norm2, mlp
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on a map x [B, H, W, C]."""
        whole = one_call.gla_block(self, x)
        if whole is not None:
            return whole
        x, normalised = one_call.add_and_norm(self.norm2, x, self.drop_path(self.mixer(self.norm(x))))
        transformed: Tensor = self.drop_path(self.mlp(normalised))
        return x + transformed
