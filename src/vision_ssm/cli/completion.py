"""``vision-ssm completion``: a script that completes commands and options in a shell, made from their parsers."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vision_ssm.cli.arguments import Parser
from vision_ssm.cli.console import print_text

NAME = "completion"
SUMMARY = "Print a script that completes commands, options and names of models in a shell."
EXAMPLES = """examples:
  vision-ssm completion bash
  vision-ssm completion zsh
  vision-ssm completion fish

In ~/.bashrc:                   source <(vision-ssm completion bash)
in ~/.zshrc, after compinit:    source <(vision-ssm completion zsh)
in ~/.config/fish/config.fish:  vision-ssm completion fish | source"""


@dataclass(frozen=True)
class _Command:
    """A command's options with their help, and the values that an option (``""``: a positional) is known to take."""

    summary: str
    options: dict[str, str] = field(default_factory=dict)
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument("shell", choices=tuple(SHELLS), help="that the script is for")


def accept(_: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
    """Return the arguments that this command does not understand."""
    return unknown


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    from vision_ssm.cli.main import build_parser

    _, parsers = build_parser()
    print_text(SHELLS[options.shell]({name: _described(parser) for name, parser in parsers.items()}))
    return 0


def _described(parser: Parser) -> _Command:
    parser.declare()
    found = _Command((parser.description or "").rstrip("."))
    known, flags = _names(), set()
    for action in parser._actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        found.options.update(dict.fromkeys(names, " ".join((action.help or "").replace("%%", "%").split())))
        if action.nargs == 0:
            flags.update(names)
        choices = tuple(map(str, action.choices)) if action.choices else known.get(_topic(action), ())
        if choices:
            found.values.update(dict.fromkeys(names or [""], choices))
    return _Command(found.summary, found.options, found.values, frozenset(flags))


def _topic(action: argparse.Action) -> str:
    """What an argument names: ``--models`` of one command and the NAME of another both name models."""
    name = (action.option_strings or [action.dest])[-1].lstrip("-")
    return "model" if name == "models" else name


def _names() -> dict[str, tuple[str, ...]]:
    from vision_ssm.models.listing import list_models, list_whole_models
    from vision_ssm.models.variant import list_aliases
    from vision_ssm.tasks.registry import task_names
    from vision_ssm.training.recipes import list_recipes

    return {
        "model": (*list_models(), *list_whole_models(), *sorted(list_aliases())),
        "task": tuple(task_names()),
        "recipe": tuple(list_recipes()),
    }


def _bash(commands: Mapping[str, _Command]) -> str:
    return f"""_vision_ssm() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if ((COMP_CWORD == 1)); then
        words={_listed([*commands, "--help", "--version"])}
    else
        case "${{COMP_WORDS[1]}} $before" in
{_cases(commands, "            {test}) words={words} ;;")}
        esac
        if [[ -z $words ]]; then
            case "${{COMP_WORDS[1]}} $word" in
{_by_command(commands, "                {test}) words={words} ;;")}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _vision_ssm vision-ssm
"""


def _zsh(commands: Mapping[str, _Command]) -> str:
    return f"""#compdef vision-ssm
_vision_ssm() {{
    local found=""
    if (( CURRENT == 2 )); then
        found={_listed([*commands, "--help", "--version"])}
    else
        case "$words[2] $words[CURRENT-1]" in
{_cases(commands, "            {test}) found={words} ;;")}
        esac
        if [[ -z $found ]]; then
            case "$words[2] $words[CURRENT]" in
{_by_command(commands, "                {test}) found={words} ;;")}
            esac
        fi
    fi
    [[ -n $found ]] && compadd -- ${{=found}}
    [[ $words[CURRENT] == -* ]] || _files
}}
compdef _vision_ssm vision-ssm
"""


def _fish(commands: Mapping[str, _Command]) -> str:
    lines = []
    for name, command in commands.items():
        lines.append(f"complete -c vision-ssm -n __fish_use_subcommand -a {name} -d {shlex.quote(command.summary)}")
        when = f"-n '__fish_seen_subcommand_from {name}'"
        if "" in command.values:
            lines.append(f"complete -c vision-ssm {when} -a {_listed(command.values[''])}")
        for option, text in command.options.items():
            takes = "" if option in command.flags else " -r"
            if option in command.values:
                takes = f" -x -a {_listed(command.values[option])}"
            lines.append(f"complete -c vision-ssm {when} -l {option[2:]}{takes} -d {shlex.quote(text)}")
    return "\n".join(lines) + "\n"


def _cases(commands: Mapping[str, _Command], line: str) -> str:
    """A line for every option whose values are known."""
    return "\n".join(
        line.format(test=f"'{name} {option}'", words=_listed(values))
        for name, command in commands.items()
        for option, values in command.values.items()
        if option
    )


def _by_command(commands: Mapping[str, _Command], line: str) -> str:
    """A line for the options of every command, and one for the values that it takes itself."""
    lines = []
    for name, command in commands.items():
        lines.append(line.format(test=f"'{name} -'*", words=_listed(command.options)))
        if "" in command.values:
            lines.append(line.format(test=f"'{name} '*", words=_listed(command.values[""])))
    return "\n".join(lines)


def _listed(words: Sequence[str] | Mapping[str, str]) -> str:
    return shlex.quote(" ".join(words))


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
