"""Outputs recorded from the published Vim class, and the deterministic weights they were recorded with.

Each file in tests/golden/vim holds the constructor arguments, the published state_dict's names and shapes, and the
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

GOLDEN = Path(__file__).parent / "golden" / "vim"
VARIANTS = sorted(path.stem for path in GOLDEN.glob("tiny_*.npz"))


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the tensor called `name`: unit normal noise seeded by the name, scaled by what the tensor is."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    kind = name.rsplit(".", maxsplit=1)[-1]
    noise = stream.standard_normal(shape).astype(np.float32)
    if kind in ("A_log", "A_b_log"):
        return np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)) + np.float32(0.1) * noise
    if kind in ("D", "D_b"):
        return 1.0 + 0.1 * noise
    if kind == "bias" and "dt_proj" in name:
        steps = np.exp(stream.uniform(np.log(1e-3), np.log(1e-1), size=shape)).astype(np.float32)
        return (steps + np.log(-np.expm1(-steps))).astype(np.float32)
    if kind == "pos_embed" or kind.startswith("cls_token"):
        return 0.2 * noise
    if kind == "bias":
        return 0.02 * noise
    if len(shape) == 1:
        return 1.0 + 0.1 * noise
    return noise / np.float32(np.sqrt(np.prod(shape[1:])))


def image(height: int, width: int) -> torch.Tensor:
    """The two images that every file was recorded with."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, height, width)).astype(np.float32))


@dataclass
class Recording:
    """One file."""

    name: str
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(str(self.arrays["config"]))["constructor"]

    def published_shapes(self) -> dict[str, list[int]]:
        return {name: shape for name, shape, _ in json.loads(str(self.arrays["keys"]))}

    def published_weights(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in self.published_shapes().items()}

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


def load(name: str) -> Recording:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return Recording(name, {key: file[key] for key in file.files})
