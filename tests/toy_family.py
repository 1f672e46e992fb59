"""A family as somebody would add it, in one file: module, table of variants, published layout and counting rule."""

from __future__ import annotations

from torch import nn

from vision_ssm.families import Family
from vision_ssm.models.variant import Inputs, Origin, Variant, Weights

ORIGIN = Origin("arXiv:0000.00000", "Toys", "https://example.com/toys", "abc1234", "mit")
TIMM = {"first_conv": "stem", "classifier": "head"}
INPUTS = Inputs(16, 3, 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VARIANTS = (
    Variant(
        "toy_small", "authors", "A toy", {"width": 8}, params=8 * 3 * 4 * 4 + 8 + 3 * 8 + 3, macs=None, origin=ORIGIN,
        published_macs=12.0, macs_source="a note", top1=12.5, source="a note", inputs=INPUTS,
        weights=Weights("toy.pth", page="https://example.com"),
    ),
)  # fmt: skip


class Toy(nn.Module):
    """Patches of 4 pixels, their mean, a head."""

    def __init__(self, *, in_chans: int = 3, num_classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.stem = nn.Conv2d(in_chans, width, 4, 4)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.stem(x).mean(dim=(2, 3)))


def is_published(state):
    return any(name.startswith("conv.") for name in state)


def to_ours(state):
    return {name.replace("conv.", "stem."): tensor for name, tensor in state.items()}


def to_published(state):
    return {name.replace("stem.", "conv."): tensor for name, tensor in state.items()}


def head_counts_for_nothing(counter, path, model):
    return -counter.of(f"{path}.head" if path else "head").total


TOY = Family(
    name="toy",
    model=f"{__name__}:Toy",
    variants=__name__,
    layout=__name__,
    macs=f"{__name__}:head_counts_for_nothing",
    dense=None,
    docs="README.md",
)
