"""``vision-ssm evaluate``: the scores of a weights file on data with known answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vision_ssm.cli.arguments import add_task_options, image_size_or_native, output_file, task_options, whole_number
from vision_ssm.cli.console import note, print_json, print_table, progress_bar, say
from vision_ssm.cli.jobs import add_job_options, job_options, refuse_without_shards
from vision_ssm.errors import ConfigError
from vision_ssm.storage import require_writable

if TYPE_CHECKING:
    from vision_ssm.inference.evaluate import Evaluation

NAME = "evaluate"
SUMMARY = "Score a weights file on data with known answers."
EXAMPLES = """The weights say their task; DATA is a folder laid out for it (classification: one folder of images per
class, with or without train/ and val/ above them), or a name such as digits.

examples:
  vision-ssm evaluate runs/demo/best.safetensors digits
  vision-ssm evaluate vim_nano_cifar10 cifar10
  vision-ssm evaluate runs/pets images/ --split val --output scores.json --pictures scores/
  vision-ssm evaluate runs/pets archive/ --shards scores/ --engine ray --address auto
  vision-ssm evaluate vim_t_midclstok_76p1acc.pth imagenet/ --model vim_tiny_patch16_224"""

_ASKED = ("split", "batch_size", "img_size", "device", "amp", "val_fraction", "download")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", metavar="WEIGHTS", help="weights file, or the name of shipped weights")
    parser.add_argument(
        "data", metavar="DATA", help="folder of data for the task of the weights, or the name of a data set"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="train, val, test or all (default: the held-out images of data that have them or that the weights were "
        "trained on, else all)",
    )
    parser.add_argument(
        "--val-fraction", type=float, metavar="SHARE", help="cut this share of every class off as the held-out images"
    )
    parser.add_argument("--model", metavar="NAME", help="model of a published checkpoint, which does not say it itself")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="images at a time (default: 64)"
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0),
        metavar="N",
        help="decoding processes (default: 0); with --shards, workers (default: one per GPU, else per processor)",
    )
    parser.add_argument(
        "--img-size",
        type=image_size_or_native,
        metavar="N|HxW|native",
        help="another size than that of training; native: each image at its own",
    )
    parser.add_argument(
        "--amp", choices=("none", "bf16", "fp16"), default="none", help="mixed precision (default: none)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--download", action="store_true", help="allow a named data set to be downloaded")
    parser.add_argument(
        "--output", type=output_file(".json"), metavar="FILE", help="also write the scores to this .json file"
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="also draw the evaluation into this folder: which classes are taken for which, the worst mistakes, ...",
    )
    add_task_options(parser, NAME)
    add_job_options(parser, about="scored by several workers, here or on a cluster", own_workers=True)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Evaluate and print."""
    from vision_ssm.inference.evaluate import draws, evaluate
    from vision_ssm.weights.opening import open_model

    if not options.shards:
        refuse_without_shards(options, own="workers")
    if options.output:  # found out now rather than after the work
        require_writable(options.output.parent)
    # With shards the workers open it for themselves, and have the device.
    loaded = open_model(options.weights, model=options.model, device="cpu" if options.shards else options.device)
    if options.pictures:
        if not draws(loaded.info.task):
            raise ConfigError(f"the task {loaded.info.task} draws no pictures of an evaluation; leave --pictures out.")
        require_writable(options.pictures)
    asked = {name: getattr(options, name) for name in _ASKED} | task_options(options, loaded.info.task)
    with progress_bar("evaluating", shown=not options.json) as on_progress:
        if options.shards:
            from vision_ssm.inference.jobs.evaluation import evaluate_in_shards

            given = job_options(options) | {"model": options.model, "loaded": loaded, "on_progress": on_progress}
            found = evaluate_in_shards(options.weights, options.data, options.shards, **asked, **given)
        else:
            found = evaluate(loaded, options.data, workers=options.workers or 0, on_progress=on_progress, **asked)
    if options.output:
        found.write(options.output)
    drawn = found.draw(options.pictures) if options.pictures else []
    if options.json:
        print_json(found.to_dict())
        return 0
    note(f"evaluated {_what(found)}.")
    for table in found.meter.tables():
        print_table(table.title, table.columns, table.rows, numeric=table.numeric)
    scores = [(score.title, score.text(found.scores[score.name])) for score in found.named]
    title = f"{found.weights} on {options.data} ({found.split})"
    print_table(title, ("", ""), [("images", f"{found.count:,}"), *scores])
    for picture in drawn:
        say(f"drew {picture}")
    return 0


def _what(found: Evaluation) -> str:
    data = found.found or f"{found.count:,} images"
    if found.of is None:
        return data
    part = "trained on" if found.split == "train" else "held out of training"
    return f"{found.count:,} of {found.of:,} images, those {part}: {data}"
