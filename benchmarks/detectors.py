"""Vim-Ti's published cascade beside the same detector over DeiT-Ti, global and windowed: time and peak memory by size.

    python benchmarks/detectors.py --threads 2 --output results/detectors_cpu.json
    python benchmarks/detectors.py --sides 1024 --mode training

All have the simple feature pyramid over patches of 16 and the heads of `vim_tiny_cascade_mask_rcnn`; weights and the
image are random. DeiT's attention is torch's fused kernel: over all tokens in every block ("global"), or, as in
arXiv:2203.16527, over all in the last block of each quarter and within windows of 14 x 14 in the others ("windowed").
A step is one image found in, or with ``--mode training`` the losses of ten boxes with masks and the backward pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from results_file import provenance, write
from side_by_side import arguments, compared, peak, words
from torch import Tensor, nn

from vision_ssm.bench.memory import peak_of
from vision_ssm.models import create_model
from vision_ssm.models.detectors import CASCADE, build_detector

WINDOW, GLOBAL_BLOCKS, OBJECTS = 14, (2, 5, 8, 11), 10


class Windowed(nn.Module):
    """Attention within windows of a row-major grid of tokens [B, H W, C], padded to whole windows."""

    def __init__(self, attention: nn.Module, side: int) -> None:
        super().__init__()
        self.attention, self.side = attention, side

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """Attend."""
        batch, _, channels = x.shape
        more = -self.side % WINDOW
        whole = self.side + more
        grid = F.pad(x.view(batch, self.side, self.side, channels), (0, 0, 0, more, 0, more))
        windows = grid.unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW)).transpose(2, 3)
        mixed = self.attention(windows.reshape(-1, WINDOW**2, channels), **options).view(windows.shape)
        grid = mixed.transpose(2, 3).reshape(batch, whole, whole, channels)
        return grid[:, : self.side, : self.side].reshape(x.shape)


def vim(side: int) -> nn.Module:
    """Return the published detector."""
    return create_model("vim_tiny_cascade_mask_rcnn", img_size=side, square=side)


def deit(side: int, *, windowed: bool) -> nn.Module:
    """Return the same detector over DeiT-Ti."""
    form: dict[str, Any] = {"class_token": False, "global_pool": "avg", "img_size": side}
    backbone: Any = timm.create_model("deit_tiny_patch16_224", features_only=True, out_indices=(11,), **form)
    for index, block in enumerate(backbone.model.blocks):
        if windowed and index not in GLOBAL_BLOCKS:
            block.attn = Windowed(block.attn, side // 16)
    options: dict[str, Any] = {**CASCADE, "square": side}
    return build_detector(backbone, **options)


BUILD: dict[str, Callable[[int], nn.Module]] = {
    "vim": vim,
    "deit global": partial(deit, windowed=False),
    "deit windowed": partial(deit, windowed=True),
}


def prepare(name: str, side: int, options: argparse.Namespace) -> Callable[[], None]:
    """Build a detector with random weights, and return what runs one step."""
    torch.manual_seed(0)
    model = BUILD[name](side).to(options.device).train(options.mode == "training")
    image = torch.randn(3, side, side, device=options.device)
    corner = torch.rand(OBJECTS, 2) * side / 2
    masks = torch.zeros(OBJECTS, side, side, dtype=torch.uint8)
    for mask, (left, top) in zip(masks, corner.long().tolist(), strict=True):
        mask[top : top + side // 4, left : left + side // 4] = 1
    target = {"boxes": torch.cat([corner, corner + side / 4], 1), "labels": torch.arange(OBJECTS), "masks": masks}
    target = {key: value.to(options.device) for key, value in target.items()}

    def find() -> None:
        with torch.inference_mode():
            model([image])

    def train() -> None:
        sum(model([image], [target]).values()).backward()
        model.zero_grad(set_to_none=True)

    return train if options.mode == "training" else find


def main() -> None:
    """Measure, print a line for each size and write the results."""
    parser = arguments(__doc__, BUILD, rounds=5)
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(peak_of(prepare(options.memory_of, options.sides[0], options), options.device)))
        return
    settings = {name: getattr(options, name) for name in ("mode", "threads", "device", "rounds")}
    report = provenance(f"python benchmarks/detectors.py {' '.join(sys.argv[1:])}".strip())
    report |= {"settings": settings, "rows": []}
    for side in options.sides:
        given = ["--mode", options.mode, "--device", options.device, "--threads", str(options.threads)]
        command = [__file__, *given, "--sides", str(side)]
        rows = compared(
            {name: partial(prepare, name, side, options) for name in BUILD},
            lambda name, command=command: peak([*command, "--memory-of", name]),  # type: ignore[misc]
            rounds=options.rounds,
            device=options.device,
        )
        report["rows"].append({"side": side, **rows})
        print(f"{side:5} px:", *(words(name, row) for name, row in rows.items()), flush=True)
        if options.output:
            write(options.output, report)


if __name__ == "__main__":
    main()
