"""VMamba's variants: every number of each, and what was published about it.

sXlY in a name: the scan is X times as wide as the tokens, and the third stage has Y blocks.

Light on purpose: this is read without torch; the model itself is imported when one is built.
"""

from __future__ import annotations

from vision_ssm.models.variant import SMALL_IMAGES, Origin, Variant, Weights

__all__ = ["TIMM", "VARIANTS"]

ORIGIN = Origin(
    paper="arXiv:2401.10166",
    title="VMamba: Visual State Space Model",
    repository="https://github.com/MzeroMiko/VMamba",
    commit="2ed52ead",
    licence="mit",
)
README = "MzeroMiko/VMamba README"
FIRST_RELEASE = "https://github.com/MzeroMiko/VMamba/releases/download/%23v0cls"
SECOND_RELEASE = "https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls"

TIMM = {"first_conv": "patch_embed.conv1", "classifier": "head.fc"}

# fmt: off
VARIANTS = (
    Variant(
        "vmamba_nano", "untrained", "VMamba for small images, maps of 16, 8, 4 and 2",
        {
            "patch_size": 2, "embed_dim": 32, "depths": (2, 2, 2, 1), "stem": "v2", "downsample": "v3",
            "d_state": 1, "ssm_ratio": 1.0, "scan_pattern": "cross", "gate": False, "conv": True, "conv_bias": False,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 3.0, "pos_embed": False, "global_pool": "avg",
        },
        params=1_346_762, macs=22_669_824, origin=ORIGIN, inputs=SMALL_IMAGES,
    ),
    Variant(
        "vmamba_tiny_s1l8", "mzeromiko_in1k", "VMamba-T as the paper reports it",
        {
            "patch_size": 4, "embed_dim": 96, "depths": (2, 2, 8, 2), "stem": "v2", "downsample": "v3",
            "d_state": 1, "ssm_ratio": 1.0, "scan_pattern": "cross", "gate": False, "conv": True, "conv_bias": False,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 4.0, "pos_embed": False, "global_pool": "avg",
        },
        alias="vmamba_tiny",
        params=30_249_064, macs=4_905_572_352, origin=ORIGIN, published_macs=4.9e9, macs_source=README,
        top1=82.6, source=README,
        weights=Weights("vssm1_tiny_0230s_ckpt_epoch_264.pth", SECOND_RELEASE),
    ),
    Variant(
        "vmamba_tiny_s2l5", "mzeromiko_in1k", "VMamba-T with the wider scan",
        {
            "patch_size": 4, "embed_dim": 96, "depths": (2, 2, 5, 2), "stem": "v2", "downsample": "v3",
            "d_state": 1, "ssm_ratio": 2.0, "scan_pattern": "cross", "gate": False, "conv": True, "conv_bias": False,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 4.0, "pos_embed": False, "global_pool": "avg",
        },
        params=30_705_832, macs=4_857_704_448, origin=ORIGIN, published_macs=4.9e9, macs_source=README,
        top1=82.5, source=README,
        weights=Weights("vssm_tiny_0230_ckpt_epoch_262.pth", SECOND_RELEASE),
    ),
    Variant(
        "vmamba_small_s2l15", "mzeromiko_in1k", "VMamba-S as the paper reports it",
        {
            "patch_size": 4, "embed_dim": 96, "depths": (2, 2, 15, 2), "stem": "v2", "downsample": "v3",
            "d_state": 1, "ssm_ratio": 2.0, "scan_pattern": "cross", "gate": False, "conv": True, "conv_bias": False,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 4.0, "pos_embed": False, "global_pool": "avg",
        },
        alias="vmamba_small",
        params=50_147_752, macs=8_715_737_088, origin=ORIGIN, published_macs=8.7e9, macs_source=README,
        top1=83.6, source=README,
        weights=Weights("vssm_small_0229_ckpt_epoch_222.pth", SECOND_RELEASE),
    ),
    Variant(
        "vmamba_small_s1l20", "mzeromiko_in1k", "VMamba-S with the narrower scan",
        {
            "patch_size": 4, "embed_dim": 96, "depths": (2, 2, 20, 2), "stem": "v2", "downsample": "v3",
            "d_state": 1, "ssm_ratio": 1.0, "scan_pattern": "cross", "gate": False, "conv": True, "conv_bias": False,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 4.0, "pos_embed": False, "global_pool": "avg",
        },
        params=49_012_840, macs=8_612_173_824, origin=ORIGIN, published_macs=8.6e9, macs_source=README,
        top1=83.3, source=README,
        weights=Weights("vssm1_small_0229s_ckpt_epoch_240.pth", SECOND_RELEASE),
    ),
    Variant(
        "vmamba_base_s2l15", "mzeromiko_in1k", "VMamba-B as the paper reports it",
        {
            "patch_size": 4, "embed_dim": 128, "depths": (2, 2, 15, 2), "stem": "v2", "downsample": "v3",
            "d_state": 1, "ssm_ratio": 2.0, "scan_pattern": "cross", "gate": False, "conv": True, "conv_bias": False,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 4.0, "pos_embed": False, "global_pool": "avg",
        },
        alias="vmamba_base",
        params=88_557_800, macs=15_358_894_080, origin=ORIGIN, published_macs=15.4e9, macs_source=README,
        top1=83.9, source=README,
        weights=Weights("vssm_base_0229_ckpt_epoch_237.pth", SECOND_RELEASE),
    ),
    Variant(
        "vmamba_base_s1l20", "mzeromiko_in1k", "VMamba-B with the narrower scan",
        {
            "patch_size": 4, "embed_dim": 128, "depths": (2, 2, 20, 2), "stem": "v2", "downsample": "v3",
            "d_state": 1, "ssm_ratio": 1.0, "scan_pattern": "cross", "gate": False, "conv": True, "conv_bias": False,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 4.0, "pos_embed": False, "global_pool": "avg",
        },
        params=86_614_504, macs=15_220_809_728, origin=ORIGIN, published_macs=15.2e9, macs_source=README,
        top1=83.8, source=README,
        weights=Weights("vssm1_base_0229s_ckpt_epoch_225.pth", SECOND_RELEASE),
    ),
    Variant(
        "vmamba_tiny_v0", "mzeromiko_in1k", "VMamba-T of the first release",
        {
            "patch_size": 4, "embed_dim": 96, "depths": (2, 2, 9, 2), "stem": "v1", "downsample": "v1",
            "d_state": 16, "ssm_ratio": 2.0, "scan_pattern": "cross", "gate": True, "conv": True, "conv_bias": True,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 0.0, "pos_embed": False, "global_pool": "avg",
        },
        # First reported with 4.5 G; the README corrects it.
        params=22_893_448, macs=5_626_864_896, origin=ORIGIN, published_macs=5.6e9, macs_source=README,
        top1=82.2, source=README,
        weights=Weights("vssmtiny_dp01_ckpt_epoch_292.pth", FIRST_RELEASE),
    ),
    Variant(
        "vmamba_small_v0", "mzeromiko_in1k", "VMamba-S of the first release",
        {
            "patch_size": 4, "embed_dim": 96, "depths": (2, 2, 27, 2), "stem": "v1", "downsample": "v1",
            "d_state": 16, "ssm_ratio": 2.0, "scan_pattern": "cross", "gate": True, "conv": True, "conv_bias": True,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 0.0, "pos_embed": False, "global_pool": "avg",
        },
        # First reported with 9.1 G; the README corrects it.
        params=44_417_416, macs=11_231_473_920, origin=ORIGIN, published_macs=11.2e9, macs_source=README,
        top1=83.5, source=README,
        weights=Weights("vssmsmall_dp03_ckpt_epoch_238.pth", FIRST_RELEASE),
    ),
    Variant(
        "vmamba_base_v0", "mzeromiko_in1k", "VMamba-B of the first release",
        {
            "patch_size": 4, "embed_dim": 128, "depths": (2, 2, 27, 2), "stem": "v1", "downsample": "v1",
            "d_state": 16, "ssm_ratio": 2.0, "scan_pattern": "cross", "gate": True, "conv": True, "conv_bias": True,
            "act_layer": "silu", "out_norm": "layer", "mlp_ratio": 0.0, "pos_embed": False, "global_pool": "avg",
        },
        # First reported with 15.2 G; the README corrects it.
        params=76_254_056, macs=18_019_576_832, origin=ORIGIN, published_macs=18.0e9, macs_source=README,
        top1=83.7, source=README,
        weights=Weights("vssmbase_dp06_ckpt_epoch_241.pth", FIRST_RELEASE),
    ),
)
# fmt: on
