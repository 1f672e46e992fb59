"""Entry of the ``vision-ssm`` command: choose the command, turn errors into messages and exit codes.

Exit codes: 0 done; 1 done, but some inputs failed; 2 wrong use, configuration or data; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import vision_ssm
from vision_ssm.cli import (
    bench,
    completion,
    cost,
    data,
    doctor,
    evaluate,
    export,
    features,
    models,
    predict,
    sample,
    train,
)
from vision_ssm.cli.arguments import Parser
from vision_ssm.cli.console import OutputLostError, complain, delivered, note, say, usable_streams
from vision_ssm.errors import NotFetchedError, ProcessError, VisionSSMError, VisionSSMNotice

__all__ = ["build_parser", "entry_point", "main"]

OK, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
COMMANDS = {
    module.NAME: module
    for module in (train, evaluate, predict, sample, features, export, data, models, cost, bench, doctor, completion)
}

# What to type once the published file is here that could not be fetched.
FILE_INSTEAD = {train.NAME: "say --checkpoint {file} in place of --pretrained"}
FILE_AND_MODEL = "give it and its model in place of the name: vision-ssm {command} {file} --model {model} ..."


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the program and those of its commands, by name. These know their arguments on first use."""
    program = Parser(
        prog="vision-ssm",
        description="Train, evaluate and use state-space vision backbones.",
        epilog="`vision-ssm COMMAND --help` tells more about a command.",
    )
    program.add_argument("--version", action="store_true", help="print the version and leave")
    commands = program.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {}
    for name, module in COMMANDS.items():
        summary = module.SUMMARY[0].lower() + module.SUMMARY[1:].rstrip(".")
        parsers[name] = commands.add_parser(
            name, help=summary, description=module.SUMMARY, epilog=module.EXAMPLES, declare=module.add_arguments
        )
    return program, parsers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with usable_streams():
        try:
            with delivered():
                return _carry_out(arguments)
        except OutputLostError as lost:
            if lost.reader_left:  # head, less: nothing more to say
                return OK
            complain(str(lost))
            return WRONG_USE


def _carry_out(arguments: Sequence[str] | None) -> int:
    program, parsers = build_parser()
    try:
        options, unknown = program.parse_known_args(arguments)
        if options.version:
            say(_version())
            return OK
        if options.command is None:
            program.refuse_unknown(unknown)
            program.print_help()
            return WRONG_USE
        command = COMMANDS[options.command]
        parsers[options.command].refuse_unknown(command.accept(options, unknown))
        with _notices_as_notes():
            code: int = command.run(options)
        return code
    except OutputLostError:
        raise
    except NotFetchedError as error:
        words = FILE_INSTEAD.get(options.command, FILE_AND_MODEL)
        complain(error.with_words(words.format(command=options.command, file=error.file, model=error.model or "NAME")))
        return WRONG_USE
    except VisionSSMError as error:
        rank, world = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
        if error.is_shared and rank == "0":  # one of those that torchrun started speaks for all
            complain(str(error))
        elif not error.is_shared:
            told = world == 1 or isinstance(error, ProcessError)
            complain(str(error) if told else f"rank {rank} of {world}: {error}")
        return WRONG_USE
    except KeyboardInterrupt:
        complain("interrupted.")
        return INTERRUPTED


@contextmanager
def _notices_as_notes() -> Iterator[None]:
    """Within the block each notice of the library is printed once, as a note; warnings of others stay what they are."""
    told: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, VisionSSMNotice):
            shown_before(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.add(str(message))
            note(str(message))

    with warnings.catch_warnings():
        # "always": Python leaves out what an earlier call told. Appended: -W and PYTHONWARNINGS come first.
        warnings.simplefilter("always", VisionSSMNotice, append=True)
        shown_before, warnings.showwarning = warnings.showwarning, show
        yield


def _version() -> str:
    return f"vision-ssm {vision_ssm.__version__}"


def entry_point() -> None:
    """Console script: run and leave with the exit code."""
    sys.exit(main())
