"""The model families, and one way to build any of them.

The list of families is `vision_ssm.families`. Importing this package is light; the names below load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vision_ssm import moved

if TYPE_CHECKING:
    from vision_ssm.models.registry import create_model as create_model
    from vision_ssm.models.registry import list_models as list_models
    from vision_ssm.models.variant import Variant as Variant
    from vision_ssm.models.variant import all_variants as all_variants

__all__ = ["Variant", "all_variants", "create_model", "list_models"]

_HOMES = {"Variant": "variant", "all_variants": "variant", "create_model": "registry", "list_models": "registry"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        moved.refuse(__name__, name)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
