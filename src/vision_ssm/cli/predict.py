"""``vision-ssm predict``: what a model finds in image files and folders."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vision_ssm.cli.arguments import (
    add_image_options,
    add_inputs,
    add_task_options,
    image_options,
    output_file,
    split_inputs,
    take_inputs,
    task_options,
)
from vision_ssm.cli.console import print_json, print_table, progress_bar, say
from vision_ssm.cli.images import open_weights, print_failures, warn_of_memory
from vision_ssm.cli.jobs import add_job_options, refuse_without_shards, run_in_shards
from vision_ssm.errors import ConfigError
from vision_ssm.storage import require_writable

if TYPE_CHECKING:
    from vision_ssm.inference.predict import Predictions

NUMBER = re.compile(r"-?[\d.,]+(?:e[-+]\d+)? ?%?")

NAME: Final = "predict"
SUMMARY = "Run a model on image files and folders of images."
EXAMPLES = """WEIGHTS is a run's folder (its best weights) or a weights file in it, a published checkpoint together with
--model, or the name of a model for its published weights; it may stand before or behind the images. Without it,
the shipped weights are used: a small model that knows the ten classes of CIFAR-10 and nothing else.

examples:
  vision-ssm predict cat.jpg dog.png
  vision-ssm predict runs/demo cat.jpg dog.png
  vision-ssm predict runs/demo/best.safetensors photos/ --top-k 3 --output predictions.csv
  find photos/ -newer last.csv -name '*.jpg' | vision-ssm predict runs/demo -
  vision-ssm predict vim_t_midclstok_76p1acc.pth photos/ --model vim_tiny_patch16_224
  vision-ssm predict runs/scans/best.safetensors scan.tif --img-size native
  vision-ssm predict runs/land scenes/ --results maps/ --polygons gpkg
  vision-ssm predict runs/demo archive/ more.tar s3://bucket/photos/ --shards found/

Files that cannot be read are listed at the end, and the exit code is then 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_inputs(parser)
    parser.add_argument(
        "--output",
        type=output_file(".json", ".csv"),
        metavar="FILE",
        help="also write the predictions to this .json or .csv file",
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="also write each image with its result drawn on it"
    )
    parser.add_argument(
        "--export",
        type=export_target,
        action="append",
        default=[],
        metavar="FORMAT=PATH",
        help=f"also write them for another program, may be given again: {formats()}",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="also write each result as a file: maps as GeoTIFF or PNG, else JSON",
    )
    add_image_options(parser)
    add_job_options(parser)
    add_task_options(parser, NAME)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def export_target(text: str) -> tuple[str, Path]:
    """Parse ``FORMAT=PATH``."""
    form, sign, path = text.partition("=")
    if not (form and sign and path):
        raise argparse.ArgumentTypeError(f"expected FORMAT=PATH such as {next(iter(_formats()))}=found/, got {text!r}")
    return form, Path(path)


def formats() -> str:
    """What the tasks can write, in words."""
    return "; ".join(f"{name}, {text}" for name, text in _formats().items())


def _formats() -> dict[str, str]:
    from vision_ssm.tasks.registry import find_task, task_names

    known: dict[str, str] = {}
    for name in task_names():
        try:
            known |= find_task(name).formats
        except ConfigError:  # of a broken package; said as soon as weights of its task are opened
            continue
    return known


def accept(options: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Take images that follow an option; return the arguments that this command does not understand."""
    return take_inputs(options, unknown)


def run(options: argparse.Namespace) -> int:
    """Predict and print; 1 when some of the images could not be used."""
    from vision_ssm.inference.predict import predict, require_format

    weights, images = split_inputs(options)
    if options.shards:
        return run_in_shards(options, NAME, weights, images)
    refuse_without_shards(options)
    if options.output:  # found out now rather than after the work
        require_writable(options.output.parent)
    loaded = open_weights(weights, options)
    for form, path in options.export:
        require_format(loaded.info.task, form)
        require_writable(path.parent if path.suffix else path)
    asked = task_options(options, loaded.info.task)
    warn_of_memory(images, loaded, options, asked)
    with progress_bar("predicting", shown=not options.json) as on_progress:
        found = predict(
            loaded,
            images,
            pictures=options.pictures,
            results=options.results,
            on_progress=on_progress,
            **image_options(options),
            **asked,
        )
    if options.output:
        found.write(options.output)
    for form, path in options.export:
        found.export(form, path)
    if options.json:
        print_json(found.to_dict())
    else:
        _print(found, [*([options.output] if options.output else []), *(path for _, path in options.export)])
    return 1 if found.failures else 0


def _print(found: Predictions, written: Sequence[Path]) -> None:
    rows = [{"image": prediction.path, **prediction.result.row()} for prediction in found.results]
    if rows:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        numeric = [name for name in columns if all(NUMBER.fullmatch(row.get(name, "0")) for row in rows)]
        print_table(
            f"By {found.weights}",
            columns,
            [tuple(row.get(name, "") for name in columns) for row in rows],
            numeric=numeric,
        )
    for path in written:
        say(f"written to {path}")
    print_failures(found.failures, found.complete)
