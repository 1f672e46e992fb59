"""Scans over token maps, and what runs in one call with or beside them: functions and the backends behind them."""

from __future__ import annotations

from vision_ssm import moved
from vision_ssm.ops.add_norm.op import add_norm
from vision_ssm.ops.add_norm.op import applies as add_norm_applies
from vision_ssm.ops.add_norm.op import applies as fuses_norms  # until its callers ask the other
from vision_ssm.ops.conv.op import causal_conv1d
from vision_ssm.ops.dispatch import BackendStatus, available_backends, explain, operators
from vision_ssm.ops.mlp.op import MlpWeights, mlp_applies, residual_mlp
from vision_ssm.ops.patch_embed.op import embed_applies, embed_patches
from vision_ssm.ops.scan.op import selective_scan
from vision_ssm.ops.ssm.op import applies as one_pass_applies
from vision_ssm.ops.ssm.op import applies as selective_ssm_applies
from vision_ssm.ops.ssm.op import selective_ssm
from vision_ssm.ops.ssm.op import selective_ssm as one_pass
from vision_ssm.ops.traversal import Traversal
from vision_ssm.ops.vim_block.column import ResidualColumn
from vision_ssm.ops.vim_block.op import (
    Branch,
    BranchWeights,
    NormWeights,
    SsmWeights,
    branch_applies,
    residual_branch,
    try_residual_branch,
)

__all__ = [
    "BackendStatus",
    "Branch",
    "BranchWeights",
    "MlpWeights",
    "NormWeights",
    "ResidualColumn",
    "SsmWeights",
    "Traversal",
    "add_norm",
    "add_norm_applies",
    "available_backends",
    "branch_applies",
    "causal_conv1d",
    "embed_applies",
    "embed_patches",
    "explain",
    "fuses_norms",
    "mlp_applies",
    "one_pass",
    "one_pass_applies",
    "operators",
    "residual_branch",
    "residual_mlp",
    "selective_scan",
    "selective_ssm",
    "selective_ssm_applies",
    "try_residual_branch",
]

moved.answer(__name__)
