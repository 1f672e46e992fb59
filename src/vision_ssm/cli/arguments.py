"""What the commands share when they read the command line: a parser that helps with spelling, and a few value types."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from vision_ssm.cli.console import print_text
from vision_ssm.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from vision_ssm.settings import Section, Setting

__all__ = [
    "Parser",
    "add_image_options",
    "add_inputs",
    "add_task_options",
    "image_options",
    "image_size",
    "image_size_or_native",
    "layer_list",
    "output_file",
    "setting_value",
    "split_inputs",
    "take_inputs",
    "task_options",
    "whole_number",
]


# What an option was called, or is called elsewhere, and the names of the same thing: a command has at most one of them.
CALLED = {
    "--sizes": ("--img-size",),
    "--size": ("--img-size",),
    "--batch": ("--batch-size",),
    "--maps": ("--layers",),
    "--layers": ("--depth",),
    "--dtype": ("--amp",),
    "--amp": ("--dtype",),
    "--plots": ("--pictures",),
    "--pictures": ("--plots",),
}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError, names the nearest option, and never guesses abbreviations.

    Args:
        declare: adds the arguments when the first command line is about to be read, so that a program of many commands
            prepares only the one that is called. It may look at ``parser.given``, that command line.
        options: see `argparse.ArgumentParser`.
    """

    def __init__(self, *, declare: Callable[[Parser], None] | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        super().__init__(**options, allow_abbrev=False)
        self._declare = declare
        self.given: Sequence[str] = ()

    def declare(self, given: Sequence[str] = ()) -> None:
        """Add the arguments, if they are not there yet, for the command line ``given``."""
        if self._declare is not None:
            declare, self._declare = self._declare, None
            self.given = given
            declare(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in argparse, after the arguments have been declared."""
        self.declare(list(args or ()))
        return super().parse_known_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        """As in argparse, which would however ignore that the text does not arrive."""
        if file is not None:
            super().print_help(file)
        else:
            print_text(self.format_help())

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving the process."""
        raise ConfigError(f"{message.rstrip('.')}. See `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse's own message lists the choices but leaves finding the nearest one to the reader.
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            name = "command" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings)
            raise ConfigError(
                f"{name or action.dest} must be one of {', '.join(choices)}, got {value!r}."
                f"{suggestion(str(value), choices)} See `{self.prog} --help`."
            )

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        """Raise ConfigError naming the right or the nearest option if ``unknown`` holds anything."""
        options = [text for action in self._actions for text in action.option_strings]
        for text in unknown:
            name = text.partition("=")[0]
            if name.startswith("-") and not re.fullmatch(r"-\d.*", name):
                if called := next((new for new in CALLED.get(name, ()) if new in options), None):
                    raise ConfigError(f"there is no {name}: here it is called {called}. See `{self.prog} --help`.")
                raise ConfigError(f"unknown option {name!r}.{suggestion(name, options)} See `{self.prog} --help`.")
        if unknown:
            raise ConfigError(f"unexpected argument {unknown[0]!r}. See `{self.prog} --help`.")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def whole_number(at_least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number that is not below ``at_least``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < at_least:
            raise argparse.ArgumentTypeError(f"must be at least {at_least}, got {value}")
        return value

    return parse


def image_size(text: str) -> tuple[int, int]:
    """Parse ``224`` or ``224x320`` (height x width) into (height, width) in pixels."""
    match = re.fullmatch(r"(-?\d+)(?:[xX×](-?\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a side such as 224 or HEIGHTxWIDTH such as 224x320, got {text!r}")
    height = int(match[1])
    width = int(match[2] or match[1])
    if height < 1 or width < 1:
        raise argparse.ArgumentTypeError(f"an image has at least one pixel per side, got {text}")
    return height, width


def image_size_or_native(text: str) -> int | tuple[int, int] | Literal["native"]:
    """Parse ``native``, or a size as `image_size` does; one side alone stays one number, which may mean the shorter."""
    if text == "native":
        return "native"
    height, width = image_size(text)
    return (height, width) if re.search("[xX×]", text) else height


def layer_list(text: str) -> list[int] | None:
    """Parse ``all`` into None, and ``5,11,-1`` into whole numbers."""
    if text == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected layers such as 5,11 or -1, or all; got {text!r}") from None


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Declare what every command that runs a model on files of images understands."""
    parser.add_argument("--model", metavar="NAME", help="model of a published checkpoint, which does not say it itself")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=16, metavar="N", help="images at a time (default: 16)"
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
    parser.add_argument(
        "--max-pixels",
        type=whole_number(1),
        metavar="N",
        help="refuse images that unpack to more pixels than this (default: 2^29)",
    )


def image_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_image_options` declared as the keywords of the Python calls; the model is opened before."""
    names = ("batch_size", "img_size", "device", "amp", *(["max_pixels"] if options.max_pixels is not None else []))
    return {name: getattr(options, name) for name in names}


def add_task_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Declare what ``command`` may be asked for, by any task.

    Which of it applies shows when the weights are open.
    """
    from vision_ssm.tasks.registry import find_task, task_names

    kinds: dict[str, list[type[Section]]] = {}
    for name in task_names():
        try:
            info = find_task(name)
            known, options = info.options_for(command), info.load_options()
        except ConfigError:  # of a broken package; said as soon as weights of its task are opened
            continue
        if not known or options is None:
            continue
        group = parser.add_argument_group(f"options of {name}")
        for key, entry in known.items():
            kinds.setdefault(key, []).append(options)
            if len(kinds[key]) == 1:  # tasks may share the name of an option
                text = f"{entry.text} ({entry.type}; default: {entry.default})".replace("%", "%%")
                flag = f"--{key.replace('_', '-')}"
                kind = partial(_option_value, key, kinds[key])
                group.add_argument(flag, dest=f"task:{key}", type=kind, metavar="VALUE", help=text)


def _option_value(key: str, kinds: Sequence[type[Section]], text: str) -> Any:
    """Read an option's value as one of the tasks that have it takes it. Raises ArgumentTypeError."""
    from vision_ssm.settings import describe, from_mapping

    fault = ""
    for kind in kinds:
        try:
            value = setting_value(describe(kind)[key], text)
            from_mapping(kind, {key: value})
        except ConfigError as error:
            fault = str(error)
        else:
            return value
    raise argparse.ArgumentTypeError(fault)


def task_options(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """Return what `add_task_options` declared as the keywords of the Python call.

    Raises:
        ConfigError: an option that ``task`` does not have.
    """
    from vision_ssm.tasks.registry import find_task

    given = {name[5:]: value for name, value in vars(options).items() if name.startswith("task:") and value is not None}
    own = find_task(task).options_for(options.command) if given else {}
    for key in given:
        if key not in own:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in own) or "none"
            raise ConfigError(
                f"--{key.replace('_', '-')} does not apply: these weights are for the task {task}, whose options are "
                f"{flags}."
            )
    return given


def setting_value(entry: Setting, text: str) -> Any:
    """Text stays as it is typed; anything else is read as YAML, as in a recipe. Raises ConfigError."""
    from vision_ssm.training.recipes import parse_value

    if entry.type.startswith("text") and not (text == "null" and "null" in entry.type):
        return text
    try:
        return parse_value(text, entry.key)
    except ConfigError:
        raise ConfigError(f"{entry.key} must be {entry.type}, got {text!r}.") from None


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """Return an argument type: a path with one of these suffixes."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"expected a file name that ends in {' or '.join(suffixes)}, got {text!r}")
        return path

    return parse


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Declare what `take_inputs` and `split_inputs` sort: optional weights, then images."""
    parser.add_argument("weights", nargs="?", metavar="WEIGHTS", help="weights file or name; may be left out")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="image files, folders searched for images, patterns in quotes ('photos/**/*.jpg'), or - for a list on "
        "standard input, one a line",
    )


def take_inputs(options: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Add the files that argparse did not understand to ``options.images``; return the rest, options.

    After an option argparse assigns no further files to an argument that may be empty.
    """
    files = [text for text in unknown if text == "-" or not text.startswith("-")]
    options.images = [*options.images, *files]
    return [text for text in unknown if text not in files]


def _listed_on_stdin() -> list[str]:
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "- stands for a list of images on standard input: find photos/ -name '*.jpg' | vision-ssm ..."
        )
    return [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line]


def split_inputs(options: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Return (weights, images): the one argument that names weights, wherever it stands, and the others.

    Raises:
        ConfigError: no images, or weights twice.
    """
    from vision_ssm.models.registry import list_models, list_whole_models
    from vision_ssm.models.variant import list_aliases
    from vision_ssm.weights.shipped import names_weights

    given: list[str] = [*([] if options.weights is None else [options.weights]), *options.images]
    files = [name for text in given for name in (_listed_on_stdin() if text == "-" else [text])]
    models = [*list_models(), *list_whole_models(), *list_aliases()]
    named = [0] if files and names_weights(files[0], model=options.model, models=models) else []
    # Behind weights a folder is one of images, whatever else it holds.
    later = [at for at, text in enumerate(files) if at > 0 and not (named and Path(text).is_dir())]
    named += [at for at in later if names_weights(files[at], models=models)]
    if len(named) > 1:
        raise ConfigError(f"{files[named[0]]!r} and {files[named[1]]!r} both name weights; give one of them.")
    weights = files[named[0]] if named else None
    images = [text for at, text in enumerate(files) if at not in named]
    if not images:
        raise ConfigError(f"the following arguments are required: IMAGES. See `vision-ssm {options.command} --help`.")
    return weights, images
