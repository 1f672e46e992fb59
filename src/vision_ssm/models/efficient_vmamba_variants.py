"""EfficientVMamba's variants: every number of each, and what was published about it.

Light on purpose: this is read without torch; the model itself is imported when one is built.
"""

from __future__ import annotations

from vision_ssm.models.variant import SMALL_IMAGES, Origin, Variant, Weights

__all__ = ["TIMM", "VARIANTS"]

ORIGIN = Origin(
    paper="arXiv:2403.09977",
    title="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
    repository="https://github.com/TerryPei/EfficientVMamba",
    commit="0bc5ee28",
    licence="apache-2.0",
)
README = "TerryPei/EfficientVMamba README"
# No commit of the hub's repositories could be found on record, so the files follow their main branch.

TIMM = {"first_conv": "patch_embed.conv1", "classifier": "head.fc"}

# fmt: off
VARIANTS = (
    Variant(
        "efficientvmamba_nano", "untrained", "EfficientVMamba for small images, maps of 16, 8, 4 and 2",
        {
            "patch_size": 2, "embed_dim": 24, "depths": (2, 2, 2, 2), "d_state": 16, "ssm_ratio": 2.0,
            "mlp_ratio": 0.0, "scan_step": 2, "downsample": "v1", "global_pool": "avg",
        },
        params=1_351_972, macs=18_208_704, origin=ORIGIN, inputs=SMALL_IMAGES,
    ),
    Variant(
        "efficientvmamba_tiny", "terrypei_in1k", "EfficientVMamba-T",
        {
            "patch_size": 4, "embed_dim": 48, "depths": (2, 2, 4, 2), "d_state": 16, "ssm_ratio": 2.0,
            "mlp_ratio": 0.0, "scan_step": 2, "downsample": "v1", "global_pool": "avg",
        },
        params=6_493_660, macs=805_664_640, origin=ORIGIN, published_macs=0.8e9, macs_source=README,
        # The training log says 76.48, without averaging.
        top1=76.5, source=README,
        weights=Weights("efficient_vmamba_tiny.ckpt", hub="TerryPei/EfficientVMamba-Tiny"),
    ),
    Variant(
        # The paper's table 1 and the repository's configuration say 96, which makes 24.8 M: ``embed_dim=96`` builds
        # that. Parameters, multiply-adds and accuracy are those of 64.
        "efficientvmamba_small", "terrypei_in1k", "EfficientVMamba-S as trained and released, 64 wide",
        {
            "patch_size": 4, "embed_dim": 64, "depths": (2, 2, 4, 2), "d_state": 16, "ssm_ratio": 2.0,
            "mlp_ratio": 0.0, "scan_step": 2, "downsample": "v1", "global_pool": "avg",
        },
        params=11_273_688, macs=1_341_545_984, origin=ORIGIN, published_macs=1.3e9, macs_source=README,
        # The training log says 78.67, without averaging.
        top1=78.7, source=README,
        weights=Weights("efficient_vmamba_small.ckpt", hub="TerryPei/EfficientVMamba-Small"),
    ),
    Variant(
        "efficientvmamba_base", "terrypei_in1k", "EfficientVMamba-B",
        {
            "patch_size": 4, "embed_dim": 96, "depths": (2, 2, 9, 2), "d_state": 16, "ssm_ratio": 2.0,
            "mlp_ratio": 0.0, "scan_step": 2, "downsample": "v1", "global_pool": "avg",
        },
        params=33_717_136, macs=3_993_623_808, origin=ORIGIN, published_macs=4.0e9, macs_source=README,
        # The training log says 81.79, with averaged weights.
        top1=81.8, source=README,
        weights=Weights("efficient_vmamba_base.ckpt", hub="TerryPei/EfficientVMamba-Base"),
    ),
)
# fmt: on
