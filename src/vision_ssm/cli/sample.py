"""``vision-ssm sample``: images made by a model that learned to make them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vision_ssm.cli.arguments import add_task_options, output_file, task_options, whole_number
from vision_ssm.cli.console import print_json, progress_bar, say
from vision_ssm.storage import require_writable

NAME = "sample"
SUMMARY = "Make images with a model that learned to make them."
EXAMPLES = """WEIGHTS is a run's folder (its best weights) or a weights file in it. Every image has a seed: --seed
for the first one of each class, and the numbers after it. The same seed makes the same image, whatever is made beside
it.

examples:
  vision-ssm sample runs/digits --output sheet.png
  vision-ssm sample runs/digits --class 3 --class 7 --count 20 --sampler ddim --steps 50 --output sheet.png
  vision-ssm sample runs/birds --class heron --count 4 --guidance 4 --seed 12 --output herons.png --images herons/
  vision-ssm sample 0400000.pt --model dig_s2 --class goldfish --autoencoder sd-vae-ft-ema/ --output fish.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", metavar="WEIGHTS", help="weights file, or the folder of a run")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="NAME",
        help="of which class, or its number from 0; may be given again (default: all that the model knows)",
    )
    parser.add_argument(
        "--count", type=whole_number(1), default=10, metavar="N", help="images of each class (default: 10)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the first image (default: 0)")
    parser.add_argument(
        "--output", type=output_file(".png"), required=True, metavar="FILE", help="the .png file with all images"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="also write each image to a file, in a folder for each class"
    )
    parser.add_argument("--model", metavar="NAME", help="model of a published checkpoint, which does not say it itself")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=32, metavar="N", help="images at a time (default: 32)"
    )
    parser.add_argument(
        "--amp", choices=("none", "bf16", "fp16"), default="none", help="mixed precision (default: none)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add_task_options(parser, NAME)
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Sample and write."""
    from vision_ssm.inference.sample import sample
    from vision_ssm.weights.opening import open_model

    for folder in (options.output.parent, options.images):
        if folder is not None:  # found out now rather than after the work
            require_writable(folder)
    loaded = open_model(options.weights, model=options.model, device=options.device)
    with progress_bar("sampling", shown=not options.json) as on_progress:
        made = sample(
            loaded,
            options.classes,
            count=options.count,
            seed=options.seed,
            batch_size=options.batch_size,
            device=options.device,
            amp=options.amp,
            on_progress=on_progress,
            **task_options(options, loaded.info.task),
        )
    made.write(options.output)
    if options.images is not None:
        made.write_images(options.images)
    if options.json:
        images = [{"class": found.class_name, "label": found.label, "seed": found.seed} for found in made.results]
        print_json({"weights": made.weights, "output": str(options.output), "images": images})
        return 0
    say(f"{len(made.results)} images by {made.weights}: {options.output}")
    if options.images is not None:
        say(f"each of them in {options.images}")
    return 0
