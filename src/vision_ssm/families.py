"""The one list of model families; whatever goes through all families reads it.

To add a family, write these files, all of them new, and add one row to ``FAMILIES``:

1. ``models/NAME.py``: the module. Options are keywords with strict checking; parts that another family could use go to
   ``layers/``. It imports no other family.
2. ``models/NAME_variants.py``: ``VARIANTS``, a row for each model with every option written out and its published facts
   beside them (`vision_ssm.models.variant`), and ``TIMM``, what timm's configuration says of all of them. A family
   whose maps all have one stride also says there with ``features(options)`` which of them to give.
3. ``checkpoints/NAME.py``: ``is_published``, ``to_ours`` and ``to_published``, pure functions from dict to dict.
4. ``analysis/NAME_macs.py``, if its published multiply-adds count otherwise than what is executed: one function.
5. ``docs/families/NAME.md``: where it differs from the published code, and which oddities it keeps.
6. ``tests/golden/NAME``, ``tests/models/test_NAME.py``, ``tests/checkpoints/test_NAME_layout.py``: outputs, gradients
   and names recorded from the published code.

timm, `vision-ssm models`, `cost`, `load_published`, the segmentation libraries' tests and the checks on every variant
then know it. A row is text only, so that reading the list imports nothing.

What makes images is no backbone: timm knows nothing of it, and its families have a list of their own, ``DENOISING``,
whose tables hold `vision_ssm.models.variant.Denoiser`. ``TIMM`` and ``features`` fall away; the rest is the same.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

__all__ = ["DENOISING", "FAMILIES", "Family", "family_of", "named"]


@dataclass(frozen=True)
class Family:
    """One family. Modules are given by their full names, what is in them as MODULE:NAME."""

    name: str  # what its models' names begin with, before an underscore
    model: str  # the class
    variants: str  # the module of its table
    layout: str  # the module that maps its published checkpoints
    macs: str | None  # what to add to the multiply-adds executed for those its publication counts
    dense: str | None  # the variant with maps at strides 4, 8, 16 and 32 that other libraries' models are tried with
    docs: str  # its page, from the root of the repository


FAMILIES: list[Family] = [
    Family(
        name="vim",
        model="vision_ssm.models.vim:Vim",
        variants="vision_ssm.models.vim_variants",
        layout="vision_ssm.checkpoints.vim",
        macs="vision_ssm.analysis.vim_macs:published_less_executed",
        dense="vim_tiny_patch16_224_pyramid",
        docs="docs/families/vim.md",
    ),
    Family(
        name="vmamba",
        model="vision_ssm.models.vmamba:VMamba",
        variants="vision_ssm.models.vmamba_variants",
        layout="vision_ssm.checkpoints.vmamba",
        macs="vision_ssm.analysis.vmamba_macs:published_less_executed",
        dense="vmamba_tiny_s1l8",
        docs="docs/families/vmamba.md",
    ),
    Family(
        name="efficientvmamba",
        model="vision_ssm.models.efficient_vmamba:EfficientVMamba",
        variants="vision_ssm.models.efficient_vmamba_variants",
        layout="vision_ssm.checkpoints.efficient_vmamba",
        macs="vision_ssm.analysis.efficient_vmamba_macs:published_less_executed",
        dense="efficientvmamba_tiny",
        docs="docs/families/efficient_vmamba.md",
    ),
    Family(
        name="vig",
        model="vision_ssm.models.vig:ViG",
        variants="vision_ssm.models.vig_variants",
        layout="vision_ssm.checkpoints.vig",
        macs=None,
        dense="vig_tiny_pyramid",
        docs="docs/families/vig.md",
    ),
    Family(
        name="vig_h",
        model="vision_ssm.models.vig_h:HierarchicalViG",
        variants="vision_ssm.models.vig_h_variants",
        layout="vision_ssm.checkpoints.vig_h",
        macs=None,
        dense="vig_h_tiny",
        docs="docs/families/vig_h.md",
    ),
]

# Families of models that tell the noise in an image; see `vision_ssm.models.denoisers`.
DENOISING: list[Family] = [
    Family(
        name="dig",
        model="vision_ssm.models.dig:DiG",
        variants="vision_ssm.models.dig_variants",
        layout="vision_ssm.checkpoints.dig",
        macs=None,
        dense=None,
        docs="docs/families/dig.md",
    ),
]


def named(place: str) -> Any:
    """Import what a row names: a module, or something in one."""
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def family_of(model: object) -> Family | None:
    """The family whose model this is (of its class or a class derived from it), or None."""
    classes = {f"{each.__module__}:{each.__qualname__}" for each in type(model).__mro__}
    return next((family for family in (*FAMILIES, *DENOISING) if family.model in classes), None)
