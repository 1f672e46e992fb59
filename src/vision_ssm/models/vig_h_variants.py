"""ViG-H's variants: every number of each, and what was published about it.

Light on purpose: this is read without torch; the model itself is imported when one is built.
"""

from __future__ import annotations

from vision_ssm.models.variant import Origin, Variant, Weights

__all__ = ["TIMM", "VARIANTS"]

ORIGIN = Origin(
    paper="arXiv:2405.18425",
    title="ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
    repository="https://github.com/hustvl/ViG",
    commit="dfb9d32",
    licence="mit",
)
README = "hustvl/ViG README"
# The README links to the repository as a whole, and what its files are called is on no record: a pattern each, which
# must fit one name, in lower case.
HUB = "hustvl/ViG"

TIMM = {"first_conv": "patch_embed.conv1", "classifier": "head.fc"}

# The numbers are those of classification/configs/vig-h; its MLP_RATIO has no effect there.

# fmt: off
VARIANTS = (
    Variant(
        "vig_h_tiny", "hustvl_in1k", "ViG-H-T",
        {"patch_size": 4, "embed_dim": 96, "depths": (2, 2, 5, 2), "head_dim": 32, "global_pool": "avg"},
        params=28_600_680, macs=4_537_832_448, origin=ORIGIN, top1=82.8, source=README,
        weights=Weights("*vig[-_]h[-_]t*", hub=HUB),
    ),
    Variant(
        "vig_h_small", "hustvl_in1k", "ViG-H-S",
        {"patch_size": 4, "embed_dim": 96, "depths": (2, 2, 17, 2), "head_dim": 32, "global_pool": "avg"},
        params=50_051_688, macs=8_823_364_608, origin=ORIGIN, top1=83.8, source=README,
        weights=Weights("*vig[-_]h[-_]s*", hub=HUB),
    ),
    Variant(
        "vig_h_base", "hustvl_in1k", "ViG-H-B",
        {"patch_size": 4, "embed_dim": 128, "depths": (2, 2, 17, 2), "head_dim": 32, "global_pool": "avg"},
        params=88_904_360, macs=15_653_326_848, origin=ORIGIN, top1=84.2, source=README,
        weights=Weights("*vig[-_]h[-_]b*", hub=HUB),
    ),
)
# fmt: on
