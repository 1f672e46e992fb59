"""``vision-ssm cost``: parameters, multiply-adds and activation memory of a model at a size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_ssm.cli.arguments import image_size, whole_number
from vision_ssm.cli.console import amount, memory, print_json, print_table

if TYPE_CHECKING:
    from vision_ssm.analysis import Cost

NAME = "cost"
SUMMARY = "Compute parameters, multiply-adds and activation memory of a model, without running it."
EXAMPLES = """examples:
  vision-ssm cost vim_tiny_patch16_224
  vision-ssm cost vim_base_patch16_224 --img-size 1248 --batch-size 8
  vision-ssm cost vim_tiny_patch16_224 --img-size 512x2048 --depth 2
  vision-ssm cost resnet50 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="NAME", help="any model registered with timm, see `vision-ssm models`")
    parser.add_argument(
        "--img-size",
        type=image_size,
        metavar="N|HxW",
        help="side, or height x width, in pixels; default: the model's own",
    )
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=1, metavar="N", help="images per pass (default: 1)"
    )
    parser.add_argument(
        "--depth", type=whole_number(1), metavar="N", help="also list the modules down to this depth, 1 or more"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Compute and print."""
    from vision_ssm.analysis import cost

    found = cost(options.model, options.img_size, batch_size=options.batch_size)
    if options.json:
        print_json(found.to_dict())
        return 0
    batch, channels, height, width = found.input_size
    rows = [
        ("parameters", f"{found.params:,}", memory(found.parameter_bytes)),
        ("multiply-adds", amount(found.macs), "as the published figures count them"),
    ]
    if found.macs_all != found.macs:
        rows.append(
            ("  all that is executed", amount(found.macs_all), "every direction's projections, 9 per state update")
        )
    if found.scan_macs:
        rows.append(("  of these in scans", amount(found.scan_macs), f"{found.scan_macs / found.macs_all:.0%}"))
    rows += [
        ("activations, training", memory(found.training_bytes), "kept for the backward pass, float32"),
        ("activations, inference", memory(found.inference_bytes), "most alive at once, float32"),
    ]
    print_table(f"{found.model}, {batch} x {channels} x {height} x {width}", ("", "", ""), rows)
    if options.depth:
        _print_layers(found, options.depth)
    return 0


def _print_layers(found: Cost, depth: int) -> None:
    print_table(
        "Modules (multiply-adds: all that is executed)",
        ("module", "kind", "parameters", "multiply-adds"),
        [
            (layer.name, layer.kind, f"{layer.params:,}", amount(layer.macs))
            for layer in found.by_layer
            if layer.name.count(".") < depth and (layer.params or layer.macs)
        ],
        numeric=("parameters", "multiply-adds"),
    )
