"""What the authors report for each variant, with where it is written."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "PublishedResult"]

_README = "hustvl/Vim README, model weights"
_PAPER = "arXiv:2401.09417v3, table 1"
_LOCAL_MAMBA = "hunto/LocalMamba README"


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
}
