"""Scans over token maps, and what runs in one call with or beside them: functions and the backends behind them."""

from __future__ import annotations

from vision_ssm import moved
from vision_ssm.ops.add_norm.contract import NormWeights
from vision_ssm.ops.add_norm.op import add_norm
from vision_ssm.ops.add_norm.op import applies as add_norm_applies
from vision_ssm.ops.conv.op import causal_conv1d
from vision_ssm.ops.dispatch import BackendStatus, available_backends, explain, operators
from vision_ssm.ops.gla.op import gla
from vision_ssm.ops.gla_block.column import GlaColumn
from vision_ssm.ops.gla_block.contract import GlaBlock
from vision_ssm.ops.gla_block.op import applies as gla_block_applies
from vision_ssm.ops.gla_block.op import gla_block
from vision_ssm.ops.mlp.contract import MlpWeights
from vision_ssm.ops.mlp.op import applies as mlp_branch_applies
from vision_ssm.ops.mlp.op import mlp_branch
from vision_ssm.ops.patch_embed.op import applies as embed_patches_applies
from vision_ssm.ops.patch_embed.op import embed_patches
from vision_ssm.ops.scan.op import selective_scan
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.ssm.op import applies as selective_ssm_applies
from vision_ssm.ops.ssm.op import selective_ssm
from vision_ssm.ops.traversal import Traversal
from vision_ssm.ops.vim_block.column import VimColumn
from vision_ssm.ops.vim_block.contract import VimBlock
from vision_ssm.ops.vim_block.op import applies as vim_block_applies
from vision_ssm.ops.vim_block.op import vim_block
from vision_ssm.ops.vim_block.recycled import release_memory

__all__ = [
    "BackendStatus",
    "GlaBlock",
    "GlaColumn",
    "MlpWeights",
    "NormWeights",
    "SsmWeights",
    "Traversal",
    "VimBlock",
    "VimColumn",
    "add_norm",
    "add_norm_applies",
    "available_backends",
    "causal_conv1d",
    "embed_patches",
    "embed_patches_applies",
    "explain",
    "gla",
    "gla_block",
    "gla_block_applies",
    "mlp_branch",
    "mlp_branch_applies",
    "operators",
    "release_memory",
    "selective_scan",
    "selective_ssm",
    "selective_ssm_applies",
    "vim_block",
    "vim_block_applies",
]

moved.answer(__name__)
