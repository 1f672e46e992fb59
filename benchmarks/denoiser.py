"""One step of DiG-S/2's denoiser beside that of a DiT of its size: time and peak memory, at growing latents.

    python benchmarks/denoiser.py --output results/denoiser_cpu.json
    python benchmarks/denoiser.py --latents 32 64 --mode training --threads 2
    python benchmarks/denoiser.py --latents 32 64 128 224 --device cuda

A latent of 32 is an image of 256 pixels and has 256 tokens; 128 has 4,096. Both have 12 blocks of 384 channels, patches
of 2 and the same embeddings; DiT's blocks are six heads of attention, by torch's fused kernel, and an MLP of 1,536. A
step is one call, or with ``--mode training`` also the backward pass. The contenders run in turn and the medians of the
rounds are kept, so that a machine whose speed drifts treats them alike; each one's memory is measured in a process of
its own (`vision_ssm.bench.memory`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from results_file import provenance, write
from side_by_side import arguments, compared, peak, words
from timm.layers import GELUTanh, Mlp  # type: ignore[attr-defined]
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from torch import Tensor, nn

from vision_ssm.bench.memory import peak_of
from vision_ssm.layers.conditioning import ClassEmbed, ModulatedOutput, TimestepEmbed, modulate
from vision_ssm.layers.positions import sincos_table
from vision_ssm.models import create_model

DEPTH, CHANNELS, HEADS, PATCH, LATENT = 12, 384, 6, 2, 4


class DiTBlock(nn.Module):
    """Attention and an MLP, both modulated and gated by what the denoiser is told."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(CHANNELS, 6 * CHANNELS)
        self.attention = Attention(CHANNELS, HEADS, qkv_bias=True)
        self.mlp = Mlp(CHANNELS, 4 * CHANNELS, act_layer=GELUTanh)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Run the block on a map x [B, H, W, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        mixed = self.attention(modulate(x, shift1, scale1).flatten(1, 2)).view(x.shape)
        x = x + gate1[:, None, None] * mixed
        return x + gate2[:, None, None] * self.mlp(modulate(x, shift2, scale2))


class DiT(nn.Module):
    """DiT-S/2, arXiv:2212.09748, for comparison only."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(LATENT, CHANNELS, PATCH, PATCH)
        self.t_embed = TimestepEmbed(CHANNELS)
        self.y_embed = ClassEmbed(1000, CHANNELS, 0.1)
        self.blocks = nn.ModuleList(DiTBlock() for _ in range(DEPTH))
        self.output = ModulatedOutput(CHANNELS, PATCH**2 * 2 * LATENT)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Tell noise and variance [B, 8, H, W] in latents x [B, 4, H, W]."""
        tokens = self.patch_embed(x).permute(0, 2, 3, 1)
        condition = F.silu(self.t_embed(t) + self.y_embed(y))
        grid = (tokens.shape[1], tokens.shape[2])
        tokens = tokens + sincos_table(grid, CHANNELS, tokens).view(1, *grid, CHANNELS)
        for block in self.blocks:
            tokens = block(tokens, condition)
        pixels = self.output(tokens, condition).unflatten(-1, (PATCH, PATCH, -1))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


BUILD: dict[str, Callable[[], nn.Module]] = {"dig_s2": lambda: create_model("dig_s2"), "dit_s2": DiT}


def parameters(name: str) -> int:
    """Of a contender; DiT's fixed positions are computed here and published as a parameter, like DiG's."""
    with torch.device("meta"):
        model = BUILD[name]()
    found = sum(parameter.numel() for parameter in model.parameters())
    return found + (0 if hasattr(model, "pos_embed") else 16 * 16 * CHANNELS)


def prepare(name: str, latent: int, options: argparse.Namespace) -> Callable[[], None]:
    """Build a contender with random weights, and return what runs one step."""
    torch.manual_seed(0)
    training, device = options.mode == "training", options.device
    with torch.device(device):
        model = BUILD[name]().train(training)
    x = torch.randn(options.batch, LATENT, latent, latent, device=device)
    t, y = (torch.randint(0, 1000, (options.batch,), device=device) for _ in range(2))

    def infer() -> None:
        with torch.inference_mode():
            model(x, t, y)

    def train() -> None:
        model(x, t, y).square().mean().backward()
        model.zero_grad(set_to_none=True)

    return train if training else infer


def compare(latent: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both contenders at one size."""
    settings = ["--mode", options.mode, "--device", options.device, "--batch", str(options.batch)]
    settings += ["--threads", str(options.threads), "--latents", str(latent)]
    rows = compared(
        {name: partial(prepare, name, latent, options) for name in BUILD},
        lambda name: peak([__file__, "--memory-of", name, *settings]),
        rounds=options.rounds,
        device=options.device,
    )
    return {"latent": latent, "tokens": (latent // PATCH) ** 2, **rows}


def in_words(row: dict[str, Any]) -> str:
    """A row in words."""
    told = [f"latent {row['latent']:4}, {row['tokens']:6} tokens:", *(words(name, row[name]) for name in BUILD)]
    if all("seconds" in row[name] for name in BUILD):
        told.append(f"DiT takes {row['dit_s2']['seconds'] / row['dig_s2']['seconds']:.2f} times as long")
    return " ".join(told)


def main() -> None:
    """Measure, print a line for each size and write the results."""
    parser = arguments(__doc__, BUILD, rounds=7)
    parser.add_argument("--latents", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(peak_of(prepare(options.memory_of, options.latents[0], options), options.device)))
        return
    settings = {name: getattr(options, name) for name in ("mode", "batch", "threads", "device", "rounds")}
    report = provenance(f"python benchmarks/denoiser.py {' '.join(sys.argv[1:])}".strip())
    report |= {"settings": settings, "parameters": {name: parameters(name) for name in BUILD}, "rows": []}
    for latent in options.latents:
        report["rows"].append(compare(latent, options))
        print(in_words(report["rows"][-1]), flush=True)
        if options.output:
            write(options.output, report)


if __name__ == "__main__":
    main()
