"""``vision-ssm evaluate``: accuracy of a weights file on labelled images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vision_ssm.cli.arguments import image_size, output_file, whole_number
from vision_ssm.cli.console import percent, print_json, print_table, progress_bar
from vision_ssm.storage import require_writable

NAME = "evaluate"
SUMMARY = "Measure the accuracy of a weights file on labelled images."
EXAMPLES = """DATA is a folder of class folders (with or without train/ and val/ above them), or a name such as digits.

examples:
  vision-ssm evaluate runs/demo/best.safetensors digits
  vision-ssm evaluate vim_nano_cifar10 cifar10
  vision-ssm evaluate runs/pets/best.safetensors images/ --split val --output scores.json
  vision-ssm evaluate vim_t_midclstok_76p1acc.pth imagenet/ --model vim_tiny_patch16_224"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", metavar="WEIGHTS", help="weights file, or the name of shipped weights")
    parser.add_argument("data", metavar="DATA", help="folder of class folders, or the name of a data set")
    parser.add_argument("--split", default="val", metavar="NAME", help="train, val or test (default: val)")
    parser.add_argument("--model", metavar="NAME", help="model of a published checkpoint, which does not say it itself")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="images at a time (default: 64)"
    )
    parser.add_argument(
        "--workers", type=whole_number(0), default=0, metavar="N", help="decoding processes (default: 0)"
    )
    parser.add_argument("--img-size", type=image_size, metavar="N|HxW", help="another size than that of training")
    parser.add_argument(
        "--amp", choices=("none", "bf16", "fp16"), default="none", help="mixed precision (default: none)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--download", action="store_true", help="allow a named data set to be downloaded")
    parser.add_argument(
        "--output", type=output_file(".json"), metavar="FILE", help="also write the scores to this .json file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Evaluate and print."""
    from vision_ssm.inference.evaluate import evaluate

    if options.output:  # found out now rather than after the work
        require_writable(options.output.parent)
    with progress_bar("evaluating", shown=not options.json) as on_progress:
        found = evaluate(
            options.weights,
            options.data,
            options.split,
            batch_size=options.batch_size,
            img_size=options.img_size,
            device=options.device,
            amp=options.amp,
            workers=options.workers,
            download=options.download,
            model=options.model,
            on_progress=on_progress,
        )
    if options.output:
        found.write(options.output)
    if options.json:
        print_json(found.to_dict())
        return 0
    counts = [sum(row) for row in found.confusion]
    print_table(
        "Accuracy per class",
        ("class", "images", "top-1"),
        [
            (name, str(count), "-" if share is None else percent(share))
            for name, count, share in zip(found.class_names, counts, found.per_class, strict=True)
            if count
        ],
        numeric=("images", "top-1"),
    )
    print_table(
        f"{options.weights} on {options.data} ({options.split})",
        ("", ""),
        [("images", f"{found.count:,}"), ("top-1", percent(found.top1)), ("top-5", percent(found.top5))],
    )
    return 0
