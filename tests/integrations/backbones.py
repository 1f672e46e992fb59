"""The backbones with which the segmentation models of other libraries are tried."""

from __future__ import annotations

# Name, and the channels of its maps at strides 4, 8, 16 and 32.
DENSE = {
    "vim_tiny_patch16_224_pyramid": [192, 192, 192, 192],
    "vmamba_tiny_s1l8": [96, 192, 384, 768],
    "efficientvmamba_tiny": [48, 96, 192, 384],
}
STRIDES = (4, 8, 16, 32)


def map_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of the four maps of an image: what is ragged is padded, so they are rounded up."""
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
