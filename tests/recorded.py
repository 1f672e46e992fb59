"""Outputs recorded from the published classes, and the deterministic weights they were recorded with.

Each file in tests/golden/FAMILY holds the constructor arguments, the published state_dict's names and shapes, and the
outputs and gradients of the published class on weights that are a function of their own name. `published_weights`
rebuilds those weights; `options` says the same constructor call in this library's words.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FAMILIES = Path(__file__).parent / "golden"
GOLDEN = FAMILIES / "vim"
VARIANTS = sorted(path.stem for path in GOLDEN.glob("tiny_*.npz"))


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the tensor called `name`: unit normal noise seeded by the name, scaled by what the tensor is."""
    kind = name.rsplit(".", maxsplit=1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    noise = stream.standard_normal(shape).astype(np.float32)
    if kind in ("A_log", "A_b_log", "A_logs"):
        return np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)) + np.float32(0.1) * noise
    if kind in ("D", "D_b", "Ds"):
        return 1.0 + 0.1 * noise
    if kind == "running_mean":
        return 0.1 * noise
    if kind == "running_var":
        return 1.0 + 0.1 * np.abs(noise)
    if kind == "dt_projs_bias" or (kind == "bias" and "dt_proj" in name):
        steps = np.exp(stream.uniform(np.log(1e-3), np.log(1e-1), size=shape)).astype(np.float32)
        return (steps + np.log(-np.expm1(-steps))).astype(np.float32)
    if kind == "pos_embed" or kind.startswith("cls_token"):
        return 0.2 * noise
    if kind == "bias":
        return 0.02 * noise
    if len(shape) == 1:
        return 1.0 + 0.1 * noise
    fan_in = shape[-1] if kind in ("x_proj_weight", "dt_projs_weight") else np.prod(shape[1:])
    return noise / np.float32(np.sqrt(fan_in))


def image(height: int, width: int, batch: int = 2) -> torch.Tensor:
    """The images that every file was recorded with."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((batch, 3, height, width)).astype(np.float32))


def relative(found: torch.Tensor, expected: Any) -> float:
    """The L2 distance of a result from what was recorded, over the latter's norm."""
    expected = torch.from_numpy(np.asarray(expected, dtype=np.float64))
    return ((found.double() - expected).norm() / expected.norm()).item()


@dataclass
class Recording:
    """One file; what it means is that of Vim's."""

    name: str
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(str(self.arrays["config"]))["constructor"]

    def images(self) -> torch.Tensor:
        """The images of this file, where it says which."""
        height, width = (int(side) for side in self.arrays["image_size"])
        return image(height, width, int(self.arrays["batch"]))

    def published_shapes(self) -> dict[str, list[int]]:
        return {name: shape for name, shape, _ in json.loads(str(self.arrays["keys"]))}

    def published_weights(self) -> dict[str, torch.Tensor]:
        shapes = self.published_shapes().items()
        return {name: torch.from_numpy(np.asarray(fill(name, tuple(shape)))) for name, shape in shapes}

    def options(self) -> dict[str, Any]:
        """The recorded constructor call as options of `vim_tiny_patch16_224` (or of its stride-8 form)."""
        config = self.config
        options: dict[str, Any] = {
            "img_size": config["img_size"],
            "norm_layer": "rms" if config.get("rms_norm", True) else "layer",
            "halve_output": config.get("if_divide_out", True),
            "layer_scale": config.get("init_layer_scale"),
        }
        kinds = {"v2": "bidirectional", "v1": "shared", "none": "forward"}
        layerwise = config.get("if_bidirectional", False)
        options["direction"] = "layerwise" if layerwise else kinds[config.get("bimamba_type", "v2")]
        if not config.get("if_cls_token", True):
            options |= {
                "class_token": "none",
                "global_pool": {"mean": "avg", "none": "last"}[config["final_pool_type"]],
            }
        elif not config.get("use_middle_cls_token", True):
            options["class_token"] = "head"
        return options

    @property
    def model_name(self) -> str:
        return "vim_tiny_patch16_stride8_224" if "stride8" in self.name else "vim_tiny_patch16_224"


# Recorded forward types of VMamba, without their common suffix: the pattern that each means.
PATTERNS = {
    "v0": "cross",
    "v05_noz": "cross",
    "v051d_noz": "unidirectional",
    "v052d_noz": "bidirectional",
    "v052dc_noz": "cascade",
}


class HierarchicalRecording(Recording):
    """One file of a four-stage family: its config is the constructor call itself."""

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(str(self.arrays["config"]))


class VMambaRecording(HierarchicalRecording):
    """One file of VMamba."""

    def options(self) -> dict[str, Any]:
        """The recorded constructor call as options of any VMamba variant."""
        config = self.config
        return {
            "embed_dim": config["dims"],
            "depths": config["depths"],
            "d_state": config["ssm_d_state"],
            "ssm_ratio": config["ssm_ratio"],
            "mlp_ratio": config["mlp_ratio"],
            "scan_pattern": PATTERNS[config["forward_type"]],
            "gate": not config["forward_type"].endswith("_noz"),
            "conv_bias": config["ssm_conv_bias"],
            "stem": config["patchembed_version"],
            "downsample": config["downsample_version"],
            "stage_norms": self.name.endswith("_backbone"),
        }

    @property
    def model_name(self) -> str:
        """The registered variant that this is, but for scan pattern and image size."""
        variants = {"tiny_s1l8": "tiny_s1l8", "tiny_s2l5": "tiny_s2l5", "small_s2l15": "small_s2l15", "v0": "tiny_v0"}
        return "vmamba_" + next(variant for start, variant in variants.items() if self.name.startswith(start))


class EfficientVMambaRecording(HierarchicalRecording):
    """One file of EfficientVMamba."""

    model_name = "efficientvmamba_tiny"

    def options(self) -> dict[str, Any]:
        """The recorded constructor call as options of any EfficientVMamba variant."""
        config = self.config
        return {
            "patch_size": config["patch_size"],
            "embed_dim": config["dims"],
            "depths": config["depths"],
            "d_state": config["d_state"],
            "ssm_ratio": config["ssm_ratio"],
            "mlp_ratio": config["mlp_ratio"],
            "scan_step": config["window_size"],
            "downsample": config["downsample_version"],
            "stage_norms": self.name.endswith("_backbone"),
        }


RECORDINGS = {
    "vim": Recording,
    "vig": Recording,
    "vig_h": Recording,
    "dig": Recording,
    "vmamba": VMambaRecording,
    "efficientvmamba": EfficientVMambaRecording,
}


def load(name: str, family: str = "vim") -> Any:
    """Read one file of a family."""
    with np.load(FAMILIES / family / f"{name}.npz") as file:
        return RECORDINGS[family](name, {key: file[key] for key in file.files})
