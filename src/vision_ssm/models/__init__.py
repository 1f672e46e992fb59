"""The model families, and one way to build any of them.

Importing this package registers the models with timm; it is light until a model is built.
"""

from __future__ import annotations

from vision_ssm.models import efficient_vmamba_variants, vim_variants, vmamba_variants
from vision_ssm.models.published import PUBLISHED, PublishedResult
from vision_ssm.models.registry import create_model, list_models

__all__ = [
    "PUBLISHED",
    "PublishedResult",
    "create_model",
    "efficient_vmamba_variants",
    "list_models",
    "vim_variants",
    "vmamba_variants",
]
