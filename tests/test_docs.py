"""README.md and docs/: what they point to exists, what they name resolves, what they show can be typed.

That the blocks also run is tried in tests/test_docs_run.py and tests/integrations/test_how_to.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vision_ssm.cli.arguments import Parser
from vision_ssm.cli.main import COMMANDS, build_parser
from vision_ssm.errors import ConfigError
from vision_ssm.settings import describe
from vision_ssm.tasks.registry import BUILT_IN
from vision_ssm.training.config import TrainConfig, config_class
from vision_ssm.training.recipes import list_recipes

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "vision_ssm"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

TOP = {".ci", "benchmarks", "csrc", "docs", "examples", "fuzz", "recipes", "results", "src", "tests"}
ROOMS = {path.stem for path in SRC.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
SOURCE = (".py", ".cpp", ".h", ".md", ".toml")
ELSEWHERE = {
    "classification/lib/models/local_vim.py": "LocalMamba's",
}
FOREIGN = {"--no-build-isolation": "pip's"}
CARRIERS = {"segmentation_models_pytorch", "transformers"}  # slow to import, may be missing, tried by test_how_to

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """What a page has in backticks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def anchors(page: Path) -> set[str]:
    """Headings as links spell them: lower case, spaces to hyphens, without punctuation."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def resolve(dotted: str) -> Any:
    """Import what a dotted name stands for. Raises ImportError or AttributeError."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for count, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join(parts[:count]))
    return found


def unresolved(names: Iterable[str]) -> list[str]:
    wrong = []
    for name in dict.fromkeys(names):
        try:
            resolve(name)
        except (ImportError, AttributeError):
            wrong.append(name)
    return wrong


@cache
def settings() -> set[str]:
    return {key for task in BUILT_IN for key in describe(config_class(task))}


@pages
def test_relative_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            wrong.append(target)
    assert wrong == []


@pages
def test_files_that_a_page_names_exist(page):
    """Paths of the repository and, without src/vision_ssm before them, of the package; CAPITALS stand for any name."""
    named = re.findall(rf"(?<![\w./*-])(?:{'|'.join(map(re.escape, TOP))})/[\w./*-]+", prose(page))
    for span in spans(page):
        first, slash, _ = span.partition("/")
        if slash and re.fullmatch(r"[\w./*-]+", span) and (first in TOP | ROOMS or span.endswith(SOURCE)):
            named.append(span)
    wrong = []
    for path in dict.fromkeys(name.rstrip("./") for name in named):
        pattern = re.sub(r"(?<![A-Za-z])[A-Z]+(?![A-Za-z])", "*", path)
        if path not in ELSEWHERE and not any(any(base.glob(pattern)) for base in (ROOT, SRC)):
            wrong.append(path)
    assert wrong == []


def test_files_of_the_repository_that_the_package_names_exist():
    wrong = []
    for file in sorted(SRC.rglob("*.py")):
        for path in re.findall(r"(?<![\w./*-])(?:csrc|docs|tests|benchmarks)/[\w./]*\w", text_of(file)):
            if not (path in ELSEWHERE or (ROOT / path).exists() or "NAME" in path):
                wrong.append(f"{file.relative_to(ROOT)}: {path}")
    assert wrong == []


@pages
def test_names_of_the_package_resolve(page):
    assert unresolved(re.findall(r"(?<![\w./-])vision_ssm(?:\.[A-Za-z_]\w*)+", text_of(page))) == []


@pages
def test_names_without_the_package_are_those_of_a_room_or_of_a_setting(page):
    """`ops.selective_scan`, `schedule.epochs`; a file, such as `config.yaml`, is neither."""
    sections = {key.partition(".")[0] for key in settings()}
    named = set()
    for span in spans(page):
        match = re.match(r"([a-z_]\w*)(?:\.\w+)+", span)
        if match and (match[1] in ROOMS or (match[1] in sections and match[0] == span)):
            named.add(match[0])
    dotted = {name for name in named - settings() if not name.endswith((".py", ".yaml", ".md"))}
    assert unresolved([f"vision_ssm.{name}" for name in sorted(dotted)]) == []


@pages
def test_python_compiles_and_its_imports_work(page):
    wrong = []
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                wrong += unresolved(alias.name for alias in node.names if alias.name.partition(".")[0] not in CARRIERS)
            elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] not in CARRIERS:
                wrong += unresolved(f"{node.module}.{alias.name}" for alias in node.names)
    assert wrong == []


@pages
def test_python_calls_take_the_arguments_that_are_shown(page):
    wrong = []
    for text in [*blocks(page, "python"), *(span for span in spans(page) if span.startswith("vision_ssm."))]:
        for node in ast.walk(ast.parse(text.replace("...", ""))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("vision_ssm."):
                keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                try:
                    inspect.signature(resolve(ast.unparse(node.func))).bind(*node.args, **keywords)
                except TypeError as error:
                    wrong.append(f"{ast.unparse(node)}: {error}")
    assert wrong == []


def command_lines(page: Path) -> list[list[str]]:
    """Words of each ``vision-ssm`` line in the blocks of a page."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["vision-ssm"]]


@pages
def test_commands_can_be_typed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("{}\n")
    wrong = []
    for words in command_lines(page):
        program, parsers = build_parser()
        try:
            options, unknown = program.parse_known_args(words)
            parsers[options.command].refuse_unknown(COMMANDS[options.command].accept(options, unknown))
        except ConfigError as error:
            wrong.append(f"{shlex.join(words)}: {error}")
    assert wrong == []


@cache
def options_of(command: str) -> frozenset[str]:
    parser = Parser(prog=f"vision-ssm {command}")
    COMMANDS[command].add_arguments(parser)
    return frozenset(text for action in parser._actions for text in action.option_strings)


@pages
def test_options_in_the_text_exist(page):
    every = frozenset().union(*(options_of(command) for command in COMMANDS)) | {"--version"} | set(FOREIGN)
    wrong = []
    for span in spans(page):
        command = re.match(r"vision-ssm ([a-z]+)", span)
        if command and command[1] not in COMMANDS:
            wrong.append(span)
        other = re.match(r"(python|pip|make|torchrun) ", span)
        known = options_of(command[1]) if command and command[1] in COMMANDS else every
        wrong += [] if other else [name for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span) if name not in known]
    assert wrong == []


def test_recipes_are_all_in_the_table_and_examples_of_recipes_are_ones(tmp_path):
    page = ROOT / "docs" / "training.md"
    assert set(list_recipes()) <= set(spans(page))
    examples = blocks(page, "yaml")
    assert examples
    for example in examples:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(example)
        TrainConfig.load(recipe)


def test_targets_and_extras_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z][\w-]*)", text_of(page))) <= targets
        assert set(re.findall(r"(?:vision-ssm|'\.)\[(\w+)\]", text_of(page))) <= extras
