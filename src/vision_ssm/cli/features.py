"""``vision-ssm features``: one feature vector per image, and feature maps of chosen layers, as .npz files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vision_ssm.cli.arguments import (
    add_image_options,
    add_inputs,
    image_options,
    layer_list,
    split_inputs,
    take_inputs,
)
from vision_ssm.cli.console import print_json, progress_bar, say
from vision_ssm.cli.images import open_weights, print_failures, warn_of_memory
from vision_ssm.cli.jobs import add_job_options, refuse_without_shards, run_in_shards
from vision_ssm.storage import require_writable

NAME: Final = "features"
SUMMARY = "Extract feature vectors and feature maps from images."
EXAMPLES = """WEIGHTS is a weights file, a published checkpoint together with --model, or the name of a model for its
published weights. Without it, the shipped weights are used. DIR gets one .npz file per image, named after it, with
the vector `embedding` and one `map_LAYER` [channels, height, width] per layer, and index.json, which says what belongs
to what.

examples:
  vision-ssm features photos/ --output features
  vision-ssm features runs/scans/best.safetensors scan.tif --img-size native --layers=-1 --output features
  vision-ssm features vim_t_midclstok_76p1acc.pth photos/ --model vim_tiny_patch16_224 --layers 5,11,17,23 --output maps
  vision-ssm features runs/demo archive/ more.tar --shards vectors/ --engine ray --address auto

Files that cannot be read are listed at the end, and the exit code is then 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_inputs(parser)
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--output", type=Path, metavar="DIR", help="folder for the results, a file per image")
    parser.add_argument(
        "--layers",
        type=layer_list,
        default=[],
        metavar="LAYERS",
        help="also the maps of these layers: 5,11, counted from the end if negative (--layers=-1), or all",
    )
    add_image_options(parser)
    add_job_options(parser, output)
    parser.add_argument("--json", action="store_true", help="print the index as JSON")


def accept(options: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Take images that follow an option; return the arguments that this command does not understand."""
    return take_inputs(options, unknown)


def run(options: argparse.Namespace) -> int:
    """Extract and write; 1 when some of the images could not be used."""
    from vision_ssm.inference.features import INDEX, features

    weights, images = split_inputs(options)
    if options.shards:
        return run_in_shards(options, NAME, weights, images)
    refuse_without_shards(options)
    require_writable(options.output)  # found out now rather than after the model is open
    loaded = open_weights(weights, options)
    warn_of_memory(images, loaded, options)
    with progress_bar("extracting", shown=not options.json) as on_progress:
        found = features(
            loaded,
            images,
            layers=options.layers,
            output=options.output,
            on_progress=on_progress,
            **image_options(options),
        )
    if options.json:
        print_json(found.to_dict())
        return 1 if found.failures else 0
    if found.results:
        length = len(found.results[0].embedding)
        maps = f", maps of layers {', '.join(map(str, found.layers))}" if found.layers else ""
        say(f"{len(found.results)} images, {length} numbers each{maps}: {options.output / INDEX}")
        say(f"by {found.weights}")
    print_failures(found.failures, len(found.results))
    return 1 if found.failures else 0
