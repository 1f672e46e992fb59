"""``vision-ssm export``: a model as a file for another runtime, checked there before it is kept."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_ssm.cli.arguments import image_size
from vision_ssm.cli.console import note, percent, print_json, print_table, say, stage_bars
from vision_ssm.exporting.settings import DYNAMIC, FORMATS, PRECISIONS, TARGETS, TOLERANCE

if TYPE_CHECKING:
    from vision_ssm.exporting.exports import Exported

NAME = "export"
SUMMARY = "Write a model as a file for another runtime, and check that it says the same there."
EXAMPLES = """WEIGHTS is a weights file, the folder of a run, a published checkpoint together with --model, or the name
of a model for its published weights. The file is run by its runtime on five images, in all sizes and batches that it
takes, and compared with the model: one that differs is removed. `vision-ssm predict`, `evaluate`, `features` and
`bench` take it in the place of weights.

examples:
  vision-ssm export runs/demo
  vision-ssm export vim_nano_cifar10 --dynamic batch,size --output small.onnx
  vision-ssm export runs/land --img-size 512 --target portable
  vision-ssm export runs/demo --precision int8 --calibrate images/ --output small.onnx

See docs/export.md for what each runtime can do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", metavar="WEIGHTS", help="weights file, run, or name")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="what to write (default: onnx)")
    parser.add_argument(
        "--target",
        choices=TARGETS,
        help="onnx: onnxruntime (default), with its operator for gated linear attention; aoti: vision-ssm (default), "
        "with this library's operators; portable: the format's own operators only",
    )
    parser.add_argument(
        "--dynamic",
        type=words(DYNAMIC),
        default=(),
        metavar="LIST",
        help="what is left open: batch, size or batch,size; otherwise one image of one size",
    )
    parser.add_argument(
        "--img-size", type=image_size, metavar="N|HxW", help="size of the images (default: that of training)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="float16: weights in half the room, computed with as before; int8: products in whole numbers "
        f"(default: {PRECISIONS[0]})",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DATA",
        help="for int8: images with known answers, as for training; their values set the ranges, their score decides",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest error of an output over its largest value "
        f"(default: {', '.join(f'{value:g} in {precision}' for precision, value in TOLERANCE.items())})",
    )
    parser.add_argument("--model", metavar="NAME", help="model of a published checkpoint, which does not say it itself")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the file to write (default: named after the weights, beside them)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def words(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argument type: words of a list, with commas between them."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if not set(found) <= set(allowed) or len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(allowed)}, got {text!r}")
        return found

    return parse


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Export, check and print."""
    from vision_ssm.exporting.exports import export

    if not options.json:
        note("exporting takes a minute or more for a model of many blocks.")
    with stage_bars(shown=not options.json) as on_stage:
        found = export(
            options.weights,
            options.output,
            format=options.format,
            target=options.target,
            dynamic=options.dynamic,
            img_size=options.img_size,
            precision=options.precision,
            calibrate=options.calibrate,
            tolerance=options.tolerance,
            model=options.model,
            on_stage=on_stage,
        )
    if options.json:
        print_json(found.to_dict())
    else:
        _print(found)
    return 0


def _print(found: Exported) -> None:
    check = found.check
    worst: dict[tuple[int, int, int], float] = {}
    for case in check.cases:
        form = (case.batch, case.height, case.width)
        worst[form] = max(worst.get(form, 0.0), case.error)
    print_table(
        f"{found.record.format} against the model (at most {check.tolerance:g})",
        ("images", "size", "largest error"),
        [(str(batch), f"{height} x {width}", f"{error:.1e}") for (batch, height, width), error in worst.items()],
        numeric=("images", "largest error"),
    )
    say(f"{percent(check.agreement)} of the answers agree")
    if found.record.quantised:
        _print_quantised(found.record.quantised)
    theirs, ours = (f"{1e3 * seconds:.1f} ms" for seconds in (check.runtime_seconds, check.torch_seconds))
    say(f"one image takes {theirs} there and {ours} here ({check.threads} threads; timed briefly, see bench)")
    say(f"written to {found.path}")


def _print_quantised(said: Mapping[str, Any]) -> None:
    layers = said["layers"]
    kept = [layer for layer in layers if layer["kept"]]
    measured = [layer for layer in layers if layer["error"] is not None]
    if measured:
        print_table(
            "each product in INT8 alone",
            ("layer", "moves the output by", ""),
            [(layer["name"], percent(layer["error"]), "stays in float" if layer["kept"] else "") for layer in measured],
            numeric=("moves the output by",),
        )
    before, after = (percent(said[name]) for name in ("before", "after"))
    say(
        f"{said['score']} of {said['images']} images: {before} in float32, {after} in INT8 "
        f"({len(layers) - len(kept)} of {len(layers)} products, ranges from {said['calibrated']} images)"
    )
