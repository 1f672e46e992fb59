"""What the authors report for each variant, with where it is written."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "PublishedResult"]

_README = "hustvl/Vim README, model weights"
_PAPER = "arXiv:2401.09417v3, table 1"
_LOCAL_MAMBA = "hunto/LocalMamba README"
_VMAMBA = "MzeroMiko/VMamba README"
_EFFICIENT = "TerryPei/EfficientVMamba README"


@dataclass(frozen=True)
class PublishedResult:
    """Published figures of one variant at its own input size; None where nothing was published.

    ``params`` is the exact count of the published class, ``multiply_adds`` the rounded figure in use, ``top1`` and
    ``top5`` are ImageNet-1K validation accuracies in percent. The sources say where the last three are written.
    """

    params: int
    multiply_adds: float | None = None
    multiply_adds_source: str | None = None
    top1: float | None = None
    top5: float | None = None
    accuracy_source: str | None = None


# The README's 80.5 and 81.6 for the small model are the released files' figures; the paper prints 80.3 and 81.4.
PUBLISHED: dict[str, PublishedResult] = {
    "vim_tiny_patch16_224": PublishedResult(7_148_008, 1.5e9, _LOCAL_MAMBA, 76.1, 93.0, _README),
    "vim_tiny_patch16_stride8_224": PublishedResult(7_250_344, None, None, 78.3, 94.2, _README),
    "vim_small_patch16_224": PublishedResult(25_796_584, 5.1e9, _LOCAL_MAMBA, 80.5, 95.1, _README),
    "vim_small_patch16_stride8_224": PublishedResult(26_001_256, None, None, 81.6, 95.4, _README),
    "vim_base_patch16_224": PublishedResult(97_598_440, None, None, 81.9, 95.8, _README),
    # No weights were released for this one, only the paper's figure.
    "vim_base_patch16_stride8_224": PublishedResult(98_007_784, None, None, 83.2, None, _PAPER),
    "vmamba_tiny_s1l8": PublishedResult(30_249_064, 4.9e9, _VMAMBA, 82.6, None, _VMAMBA),
    "vmamba_tiny_s2l5": PublishedResult(30_705_832, 4.9e9, _VMAMBA, 82.5, None, _VMAMBA),
    "vmamba_small_s2l15": PublishedResult(50_147_752, 8.7e9, _VMAMBA, 83.6, None, _VMAMBA),
    "vmamba_small_s1l20": PublishedResult(49_012_840, 8.6e9, _VMAMBA, 83.3, None, _VMAMBA),
    "vmamba_base_s2l15": PublishedResult(88_557_800, 15.4e9, _VMAMBA, 83.9, None, _VMAMBA),
    "vmamba_base_s1l20": PublishedResult(86_614_504, 15.2e9, _VMAMBA, 83.8, None, _VMAMBA),
    # First reported with 4.5, 9.1 and 15.2 G; the README corrects it.
    "vmamba_tiny_v0": PublishedResult(22_893_448, 5.6e9, _VMAMBA, 82.2, None, _VMAMBA),
    "vmamba_small_v0": PublishedResult(44_417_416, 11.2e9, _VMAMBA, 83.5, None, _VMAMBA),
    "vmamba_base_v0": PublishedResult(76_254_056, 18.0e9, _VMAMBA, 83.7, None, _VMAMBA),
    # The training logs say 76.48, 78.67 (both without averaging) and 81.79 (averaged weights); the small model is the
    # released one of width 64.
    "efficientvmamba_tiny": PublishedResult(6_493_660, 0.8e9, _EFFICIENT, 76.5, None, _EFFICIENT),
    "efficientvmamba_small": PublishedResult(11_273_688, 1.3e9, _EFFICIENT, 78.7, None, _EFFICIENT),
    "efficientvmamba_base": PublishedResult(33_717_136, 4.0e9, _EFFICIENT, 81.8, None, _EFFICIENT),
}
