"""``vision-ssm train``: fine-tune or train on a folder of images or a named data set."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vision_ssm.cli.arguments import image_size
from vision_ssm.cli.console import amount, console, duration, print_json, print_table, score
from vision_ssm.errors import ConfigError
from vision_ssm.settings import Setting, describe
from vision_ssm.training.config import TrainConfig

if TYPE_CHECKING:
    from vision_ssm.training import TrainResult

NAME = "train"
SUMMARY = "Train a model on a folder of images or a named data set."
EXAMPLES = """DATA is a folder with one folder of images per class (with or without train/ and val/ above them), or
a name: digits, cifar10, cifar100, mnist, fashion-mnist.

examples:
  vision-ssm train images/ --model vim_tiny_patch16_224 --pretrained --epochs 20
  vision-ssm train digits --recipe digits
  vision-ssm train cifar10 --download --batch-size 128 --schedule.warmup_epochs 2 --model.options.class_token head
  vision-ssm train images/ --recipe my.yaml --dry-run
  vision-ssm train --resume runs/my-run

A recipe is read first, the options change it. The run's folder, runs/NAME, holds the effective configuration, the log,
the weights (best.safetensors, last.safetensors), the state to resume from, and the plots."""

# Everyday options and the setting that each of them is short for.
SHORT = {
    "model": "model.name",
    "img-size": "model.img_size",
    "checkpoint": "model.checkpoint",
    "batch-size": "data.batch_size",
    "workers": "data.workers",
    "epochs": "schedule.epochs",
    "lr": "optim.lr",
    "device": "run.device",
    "name": "run.name",
    "output": "run.output",
    "seed": "run.seed",
}
FLAGS = {"pretrained": "model.pretrained", "download": "data.download", "overwrite": "run.overwrite"}
METAVARS = {"model": "NAME", "checkpoint": "FILE", "device": "DEVICE", "name": "NAME", "output": "FOLDER", "lr": "RATE"}
FREE_FORM = re.compile(r"--(model\.options\.\w+)(?:=(.*))?", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the everyday options and, below them, every setting by its dotted name."""
    settings = {entry.key: entry for entry in describe(TrainConfig)}
    parser.usage = "vision-ssm train DATA [options]"
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder of class folders, or the name of a data set")
    parser.add_argument("--recipe", metavar="FILE|NAME", help="YAML file, or a recipe that comes with the package")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue an interrupted run: its folder; without RUN, the run these options name",
    )
    for flag, key in FLAGS.items():
        parser.add_argument(f"--{flag}", action="store_true", help=f"{settings[key].text} [{key}]")
    parser.add_argument(
        "--amp", nargs="?", const="bf16", choices=("none", "bf16", "fp16"), help="mixed precision; alone it means bf16"
    )
    for short, key in SHORT.items():
        kind: dict[str, Any] = {"metavar": METAVARS.get(short, "N")}
        if short == "img-size":
            kind = {"type": image_size, "metavar": "N|HxW"}
        parser.add_argument(f"--{short}", dest=_destination(key), help=_help(settings[key], short=True), **kind)
    parser.add_argument(
        "--dry-run", action="store_true", help="show steps, speed here and the time needed; train nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for key, entry in settings.items():
        section = key.rpartition(".")[0] or "general"
        if section not in groups:
            groups[section] = parser.add_argument_group(f"settings: {section}")
        groups[section].add_argument(f"--{key}", dest=f"setting:{key}", metavar="VALUE", help=_help(entry))


def _destination(key: str) -> str:
    return f"short:{key}"


def _help(entry: Setting, *, short: bool = False) -> str:
    text = entry.text.replace("%", "%%")
    return f"{text} [{entry.key}]" if short else f"{text} ({entry.type}; default: {_spell(entry.default)})"


def _spell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def accept(options: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Take the free-form ``--model.options.NAME VALUE`` out of ``unknown`` and return the rest."""
    options.model_options = []
    rest = []
    waiting = list(unknown)
    while waiting:
        text = waiting.pop(0)
        match = FREE_FORM.fullmatch(text)
        if match is None:
            rest.append(text)
        elif match[2] is not None:
            options.model_options.append((match[1], match[2]))
        elif waiting:
            options.model_options.append((match[1], waiting.pop(0)))
        else:
            rest.append(text)
    return rest


def configuration(options: argparse.Namespace) -> TrainConfig:
    """Turn the command line into the configuration it asks for. Raises ConfigError."""
    settings = {entry.key: entry for entry in describe(TrainConfig)}
    overrides: dict[str, Any] = {}
    for name, value in vars(options).items():
        kind, _, key = name.partition(":")
        if kind in ("setting", "short") and value is not None:
            overrides[key] = _value(settings[key], value) if isinstance(value, str) else list(value)
    if options.amp:
        overrides["run.amp"] = options.amp
    overrides |= {key: True for flag, key in FLAGS.items() if getattr(options, flag)}
    overrides |= {key: yaml.safe_load(text) for key, text in options.model_options}
    if options.data is not None:
        overrides["data.path"] = options.data
    recipe = options.recipe
    if options.resume:
        given = Path(options.resume)
        saved = (given.parent if given.suffix == ".ckpt" else given) / "config.yaml"
        recipe = recipe or (saved if saved.is_file() else None)
        overrides["run.resume"] = options.resume
    config = TrainConfig.load(recipe, overrides)
    return config.replace(**{"run.resume": str(config.run_folder)}) if options.resume == "" else config


def _value(entry: Setting, text: str) -> Any:
    """Text stays as it is typed; anything else is read as YAML, as in a recipe. Raises ConfigError."""
    if entry.type.startswith("text") and not (text == "null" and "null" in entry.type):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{entry.key} must be {entry.type}, got {text!r}.") from None


def run(options: argparse.Namespace) -> int:
    """Train, or estimate with ``--dry-run``."""
    config = configuration(options)
    return _estimate(config, options) if options.dry_run else _train(config, options)


def _estimate(config: TrainConfig, options: argparse.Namespace) -> int:
    from vision_ssm.training import estimate

    if not options.json:
        _print_configuration(config)
    found = estimate(config)
    if options.json:
        print_json(dataclasses.asdict(found))
        return 0
    for notice in found.notices:
        console().print(f"note: {notice}", soft_wrap=True)
    rows = [
        ("model", f"{found.model}, {amount(found.parameters)} parameters, {found.classes} classes"),
        ("images", f"{found.train_images:,} to train on, {found.val_images:,} held out"),
        ("updates", f"{found.updates:,} = {found.epochs} epochs x {found.updates_per_epoch:,}"),
        ("images per update", f"{found.images_per_update:,}"),
        ("learning rate", f"{found.learning_rate:.3g}"),
        ("speed", f"{found.images_per_second:.1f} images/s training, {found.eval_images_per_second:.1f} evaluating"),
        ("on", f"{found.device}, {found.processes} process{'es' if found.processes > 1 else ''}"),
        ("estimated time", duration(found.seconds)),
    ]
    print_table("Dry run: nothing was trained or written", ("", ""), rows)
    return 0


def _train(config: TrainConfig, options: argparse.Namespace) -> int:
    from vision_ssm.training import train

    if os.environ.get("RANK", "0") != "0":  # torchrun hands every process the same command; the first one speaks
        result = train(config)
        return 128 + signal.Signals[result.interrupted] if result.interrupted else 0
    if options.json:
        result = train(config)
    else:
        from vision_ssm.cli.progress import TrainingDisplay

        with TrainingDisplay(on_start=_print_configuration) as display:
            result = train(config, on_event=display)
    _report(result, options)
    return 128 + signal.Signals[result.interrupted] if result.interrupted else 0


def _print_configuration(config: TrainConfig) -> None:
    console().print("Effective configuration", style="bold")
    style: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": True, "width": 110}
    for section, values in config.to_dict().items():
        text = yaml.safe_dump(values, **style) if isinstance(values, dict) else str(values)
        print(f"{section}: {text.strip()}")
    print()


def _report(result: TrainResult, options: argparse.Namespace) -> None:
    if options.json:
        print_json(
            {
                "folder": str(result.folder),
                "best_weights": str(result.best_weights) if result.best_weights else None,
                "best_scores": result.best_scores,
                "best_epoch": result.best_epoch,
                "updates": result.updates,
                "interrupted": result.interrupted,
            }
        )
        return
    rows = [("updates", str(result.updates))]
    if result.best_weights:
        rows += [(name, score(name, value)) for name, value in result.best_scores.items()]
        rows += [("best epoch", str(result.best_epoch)), ("weights", str(result.best_weights))]
    rows.append(("folder", str(result.folder)))
    print_table("Interrupted" if result.interrupted else "Result", ("", ""), rows)
    if result.interrupted:
        console().print(f"continue with: vision-ssm train --resume {shlex.quote(str(result.folder))}", soft_wrap=True)
