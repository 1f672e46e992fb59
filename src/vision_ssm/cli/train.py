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
from typing import TYPE_CHECKING, Any, cast

from vision_ssm.cli.arguments import Parser, image_size, setting_value
from vision_ssm.cli.console import amount, duration, print_json, print_table, say
from vision_ssm.errors import ConfigError

if TYPE_CHECKING:
    from vision_ssm.settings import Setting
    from vision_ssm.tasks.registry import TaskInfo
    from vision_ssm.training import FoldsResult, TrainConfig, TrainResult

NAME = "train"
SUMMARY = "Train a model on a folder of images or a named data set."
EXAMPLES = """DATA is what the task takes. For classification: a folder with one folder of images per class (with or
without train/ and val/ above them), or a name: digits, cifar10, cifar100, mnist, fashion-mnist.

examples:
  vision-ssm train images/ --recipe finetune --pretrained
  vision-ssm train images/ --recipe small
  vision-ssm train digits --recipe digits
  vision-ssm train cifar10 --download --batch-size 128 --schedule.warmup_epochs 2 --model.options.class_token head
  vision-ssm train images/ --recipe my.yaml --dry-run
  vision-ssm train --resume runs/my-run
  vision-ssm train --schema

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
    "updates": "schedule.updates",
    "lr": "optim.lr",
    "device": "run.device",
    "name": "run.name",
    "output": "run.output",
    "seed": "run.seed",
    "download": "data.download",
    "pretrained": "model.pretrained",
    "overwrite": "run.overwrite",
    "skip-unreadable": "data.skip_unreadable",
}
METAVARS = {"model": "NAME", "checkpoint": "FILE", "device": "DEVICE", "name": "NAME", "output": "FOLDER", "lr": "RATE"}
FREE_FORM = re.compile(r"--(model\.options\.\w+)(?:=(.*))?", re.DOTALL)


def add_arguments(parser: Parser) -> None:
    """Declare the everyday options and, below them, every setting of the task by its dotted name."""
    from vision_ssm.settings import describe
    from vision_ssm.tasks.registry import task_names
    from vision_ssm.training.config import config_class

    task = _task(parser)
    settings = describe(config_class(task.name))
    parser.set_defaults(task_of_settings=task.name)
    parser.usage = "vision-ssm train DATA [options]"
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder, or the name of a data set")
    _add_choosers(parser, f"what is learned; here {task.name}: {task.summary} Tasks: {', '.join(task_names())}")
    parser.add_argument(
        "--amp", nargs="?", const="bf16", choices=("none", "bf16", "fp16"), help="mixed precision; alone it means bf16"
    )
    for short, key in SHORT.items():
        _add_short(parser, short, settings[key])
    parser.add_argument(
        "--dry-run", action="store_true", help="show steps, speed here and the time needed; train nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    for short, key in task.short.items():
        if key not in settings or f"--{short}" in parser._option_string_actions:
            raise ConfigError(
                f"the task {task.name!r} has --{short} for {key}: the option is taken, or no such setting."
            )
        _add_short(parser, short, settings[key])
    groups: dict[str, argparse._ArgumentGroup] = {}
    for key, entry in settings.items():
        section = key.rpartition(".")[0]
        if not section:
            continue
        if section not in groups:
            groups[section] = parser.add_argument_group(f"settings: {section}")
        groups[section].add_argument(f"--{key}", dest=f"setting:{key}", metavar="VALUE", help=_help(entry))


def _add_short(parser: Parser, short: str, entry: Setting) -> None:
    kind: dict[str, Any] = {"metavar": METAVARS.get(short, "N")}
    if entry.type == "true or false":
        kind = {"action": "store_const", "const": "true"}
    elif short == "img-size":
        kind = {"type": image_size, "metavar": "N|HxW"}
    parser.add_argument(f"--{short}", dest=f"short:{entry.key}", help=_help(entry, short=True), **kind)


def _add_choosers(parser: argparse.ArgumentParser, tasks: str) -> None:
    """The options that decide which task this is about, and with it which further options there are."""
    parser.add_argument("--task", metavar="NAME", help=tasks.replace("%", "%%"))
    parser.add_argument("--recipe", metavar="FILE|NAME", help="YAML file, or a recipe that comes with the package")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue an interrupted run: its folder; without RUN, the run these options name",
    )


def _task(parser: Parser) -> TaskInfo:
    """The task that the command line names, or its recipe, or the run that it resumes. Raises ConfigError."""
    from vision_ssm.tasks.registry import DEFAULT, find_task
    from vision_ssm.training.recipes import find_recipe, read_recipe

    chooser = Parser(prog=parser.prog, add_help=False)
    _add_choosers(chooser, "")
    options, _ = chooser.parse_known_args(parser.given)
    recipe = _recipe(options)
    if options.task is not None or recipe is None:
        return find_task(options.task or DEFAULT)
    source = find_recipe(recipe)
    name = read_recipe(source).get("task", DEFAULT)
    try:
        return find_task(str(name))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _recipe(options: argparse.Namespace) -> str | Path | None:
    """The recipe asked for, or the configuration of the run to resume, if it has one."""
    if options.recipe is not None or not options.resume:
        return cast("str | None", options.recipe)
    given = Path(options.resume)
    saved = (given.parent if given.suffix == ".ckpt" else given) / "config.yaml"
    return saved if saved.is_file() else None


def _help(entry: Setting, *, short: bool = False) -> str:
    text = entry.text.replace("%", "%%")
    if short:
        return f"{text} [{entry.key}]"
    kind = ", ".join(filter(None, (entry.type, entry.bounds)))
    return f"{text} ({kind}; default: {_spell(entry.default)})"


def _spell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


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
    from vision_ssm.settings import describe
    from vision_ssm.training.config import TrainConfig, config_class
    from vision_ssm.training.recipes import parse_value

    settings = describe(config_class(options.task_of_settings))
    overrides: dict[str, Any] = {}
    for name, value in vars(options).items():
        kind, _, key = name.partition(":")
        if kind in ("setting", "short") and value is not None:
            overrides[key] = setting_value(settings[key], value) if isinstance(value, str) else list(value)
    if options.amp:
        overrides["run.amp"] = options.amp
    overrides |= {key: parse_value(text, key) for key, text in options.model_options}
    if options.data is not None:
        overrides["data.path"] = options.data
    if options.task is not None:
        overrides["task"] = options.task
    if options.resume:
        overrides["run.resume"] = options.resume
    config = TrainConfig.load(_recipe(options), overrides)
    return config.replace(**{"run.resume": str(config.run_folder)}) if options.resume == "" else config


def run(options: argparse.Namespace) -> int:
    """Train, or estimate with ``--dry-run``, or print the schema."""
    if options.schema:
        from vision_ssm.settings import schema
        from vision_ssm.training.config import config_class

        print_json(schema(config_class(options.task_of_settings)))
        return 0
    config = configuration(options)
    _refuse_data_of_another_task(options, config)
    if config.data.folds is not None and config.data.fold is None:
        if options.dry_run:
            raise ConfigError("a dry run is of one run: say which fold, for instance --data.fold 0.")
        return _train_folds(config, options)
    return _estimate(config, options) if options.dry_run else _train(config, options)


def _refuse_data_of_another_task(options: argparse.Namespace, config: TrainConfig) -> None:
    """Raise ConfigError where nobody has named a task and the data are another one's."""
    from vision_ssm.tasks.registry import looks_like
    from vision_ssm.training.recipes import find_recipe, read_recipe

    recipe = _recipe(options)
    if options.task is not None or (recipe is not None and "task" in read_recipe(find_recipe(recipe))):
        return
    if alike := looks_like(config.data.path, config.task):
        raise ConfigError(f"data {config.data.path!r}: {alike} If it is not, say --task {config.task}.")


def _estimate(config: TrainConfig, options: argparse.Namespace) -> int:
    from vision_ssm.training import estimate

    found = estimate(config)
    if options.json:
        print_json(dataclasses.asdict(found))
        return 0
    say(f"Data: {found.data}")
    _print_configuration(config)
    for notice in found.notices:
        say(f"note: {notice}")
    rows = [
        ("model", f"{found.model}, {amount(found.parameters)} parameters{f', {found.knows}' if found.knows else ''}"),
        ("images", f"{found.train_images:,} to train on, {found.val_images:,} held out"),
        ("updates", f"{found.updates:,} in {found.epochs} epochs of {found.updates_per_epoch:,}"),
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


def _train_folds(config: TrainConfig, options: argparse.Namespace) -> int:
    from vision_ssm.training import train_folds

    speaks = os.environ.get("RANK", "0") == "0"
    if options.json or not speaks:
        result = train_folds(config)
    else:
        from vision_ssm.cli.progress import TrainingDisplay

        with TrainingDisplay(on_start=_print_configuration) as display:
            result = train_folds(config, on_event=display)
    if options.json and speaks:
        print_json(result.to_dict())
    elif speaks:
        _report_folds(result)
    return 128 + signal.Signals[result.interrupted] if result.interrupted else 0


def _report_folds(result: FoldsResult) -> None:
    columns = ("", *(named.title for named in result.named))
    rows = [
        (
            run.folder.name,
            *(named.text(run.best_scores[named.name]) if run.best_scores else "-" for named in result.named),
        )
        for run in result.runs
    ]
    if not result.interrupted:
        rows += [
            (name, *(named.text(values[named.name]) for named in result.named))
            for name, values in (("mean", result.mean), ("deviation", result.deviation))
        ]
    print_table("Interrupted" if result.interrupted else "Best of each fold", columns, rows, numeric=columns[1:])
    if result.interrupted:
        say("continue with the same command and --resume at its end")
    else:
        say(f"also in {result.file}")


def _print_configuration(config: TrainConfig) -> None:
    from vision_ssm.training.recipes import write_recipe

    say("Effective configuration", style="bold")
    for section, values in config.to_dict().items():
        text = write_recipe(values, flow=True) if isinstance(values, dict) else str(values)
        say(f"{section}: {' '.join(text.split())}")
    say("")


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
        rows += [
            (named.title, named.text(result.best_scores[named.name]))
            for named in result.named
            if named.name in result.best_scores
        ]
        rows += [("best epoch", str(result.best_epoch)), ("weights", str(result.best_weights))]
    rows.append(("folder", str(result.folder)))
    print_table("Interrupted" if result.interrupted else "Result", ("", ""), rows)
    if result.interrupted:
        say(f"continue with: vision-ssm train --resume {shlex.quote(str(result.folder))}")
