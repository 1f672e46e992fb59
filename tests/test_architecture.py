"""What CONTRIBUTING.md promises about the shape of the code; each message says what to do."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "vision_ssm"

FILE_LINES = 400
BODY_LINES = 60
"""Of a function below its signature and docstring: an option takes a line there, and none of the complexity."""

LONG_KERNELS = {
    # Triton compiles a kernel as one function: what loops over steps cannot leave for another without its registers.
    ("src/vision_ssm/ops/scan/triton_forward.py", "scan_segments"),
    ("src/vision_ssm/ops/scan/triton_backward.py", "scan_adjoint"),
    ("src/vision_ssm/ops/conv/triton.py", "conv_adjoint"),
}

ROOMS = (
    # From above to below.
    *("cli", "bench", "exporting", "analysis", "training", "inference", "weights", "tasks", "models", "data"),
    *("checkpoints", "layers", "ops", "settings", "families", "device", "plots"),
    *("storage", "errors", "moved"),
)
NAME_NO_TASK = ("training", "inference", "weights", "data", "cli", "analysis")
NAME_NO_FAMILY = (*NAME_NO_TASK, "tasks")
MAY_NAME = {
    # (file, name): why. Whoever adds a line here should not find a way through the registries first.
    ("weights/shipped.py", "vim"): "the weights that ship with the package are those of one model",
    ("training/config.py", "vim"): "the model that `train` takes when none is named",
}

TESTS_OF_SEVERAL_ROOMS = {"golden", "integrations"}

KINDS = ("reference", "chunked", "cpu", "triton")
"""Files of an operator's folder that hold one implementation of it, by the beginning of their names."""


class Import(NamedTuple):
    """``path`` imports ``module``, dotted and without the package's name, at ``line``."""

    path: Path
    line: int
    module: str


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def inside(*rooms: str) -> list[Path]:
    """Python files of some rooms."""
    found = [path for room in rooms for path in (*(SRC / room).rglob("*.py"), SRC / f"{room}.py") if path.exists()]
    assert found
    return sorted(found)


def imports(path: Path) -> Iterator[Import]:
    """What a file of src imports from the package, wherever in it; each imported name as if it were a module."""
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno}: write the import from the root of the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("vision_ssm."):
                yield Import(path, node.lineno, name.removeprefix("vision_ssm."))


def names_of_tasks() -> set[str]:
    return {path.parent.name for path in (SRC / "tasks").glob("*/__init__.py")}


def names_of_families() -> set[str]:
    """A family is a file in models/ with its variants beside it."""
    return {path.name.removesuffix("_variants.py") for path in (SRC / "models").glob("*_variants.py")}


def names_of_operators() -> set[str]:
    return {path.parent.name for path in (SRC / "ops").glob("*/__init__.py")}


def rooms() -> set[str]:
    packages = {path.parent.name for path in SRC.glob("*/__init__.py")}
    return packages | {path.stem for path in SRC.glob("*.py")} - {"__init__", "__main__"}


def report(faults: list[str], advice: str) -> None:
    """Fail with one fault a line and what to do about them."""
    if faults:
        pytest.fail("\n".join([*faults, advice]), pytrace=False)


def test_files_are_short() -> None:
    native = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".cpp", ".h")]
    faults = []
    for path in (*python_files("src", "tests", "benchmarks", "examples", "fuzz"), *native):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            faults.append(f"{shown(path)}: {lines} lines")
    report(faults, f"A file has at most {FILE_LINES} lines: split it where its subject divides.")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_functions_are_short() -> None:
    faults, exempt = [], set()
    for path in python_files("src", "tests", "benchmarks", "examples", "fuzz"):
        for function in functions(parsed(path)):
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines <= BODY_LINES:
                continue
            if (shown(path), function.name) in LONG_KERNELS:
                exempt.add((shown(path), function.name))
            else:
                faults.append(f"{shown(path)}:{function.lineno}: {function.name} has {lines} lines")
    faults += [f"{path}: {name} is in LONG_KERNELS and is not long" for path, name in sorted(LONG_KERNELS - exempt)]
    report(faults, f"The body of a function has at most {BODY_LINES} lines: name its steps and call them.")


def test_no_file_is_named_after_nothing() -> None:
    parts = re.compile(r"(^|_)(utils?|misc|helpers?|stuff|common_functions)($|_)")
    folders = [ROOT / folder for folder in ("src", "tests", "benchmarks", "examples", "fuzz", "csrc")]
    faults = [
        shown(path)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts and parts.search(path.stem)
    ]
    report(faults, "Name a file after what it holds; what has no such name belongs into files that have.")


def layers_contract() -> list[list[str]]:
    """Rooms of the contract in pyproject.toml, a list for each of its lines."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract.get("containers") == ["vision_ssm"]]
    assert contract["exhaustive"] is True
    assert contract["containers"] == ["vision_ssm"]
    return [re.findall(r"\w+", line) for line in contract["layers"]]


def test_the_contract_of_imports_knows_every_room_in_its_order() -> None:
    contract = layers_contract()
    listed = [room for line in contract for room in line]
    faults = [f"{room}: is in src/vision_ssm and not in the contract" for room in sorted(rooms() - set(listed))]
    faults += [f"{room}: is in the contract and not in src/vision_ssm" for room in sorted(set(listed) - rooms())]
    faults += [f"{room}: has no place in ROOMS of this file" for room in sorted(set(listed) - set(ROOMS))]
    if not faults and listed != [room for room in ROOMS if room in listed]:
        faults = [f"the contract's order is {' > '.join(listed)}"]
    report(
        faults,
        "List every room in [[tool.importlinter.contracts]] of pyproject.toml, from above to below: "
        f"{' > '.join(ROOMS)}. `make lint` then checks the directions.",
    )
    assert ["models", "data"] in contract, "models and data know nothing of each other: write 'models | data'"


def test_contributing_describes_the_rooms_from_above_to_below() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ((?:`\w+`,? ?)+)\|", text, re.MULTILINE)
    described = [room for cell in table for room in re.findall(r"\w+", cell)]
    listed = [room for line in layers_contract() for room in line]
    assert described == listed, "the table of rooms in CONTRIBUTING.md and the contract in pyproject.toml differ"


def code_strings(path: Path) -> Iterator[tuple[int, str]]:
    """Strings of a file but its docstrings (a bare string documents) and the examples that a command shows."""
    tree = parsed(path)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.Assign) and any(
            isinstance(to, ast.Name) and to.id == "EXAMPLES" for to in node.targets
        ):
            skipped.update(ast.walk(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.lineno, node.value


def namings(path: Path, name: str, room: str) -> Iterator[int]:
    """Lines of a file that name a task or family: in a string, or by importing it or something called after it."""
    spelling = "_?".join(map(re.escape, name.split("_")))
    word = re.compile(rf"(?<![a-z]){spelling}(?![a-z])", re.IGNORECASE)
    yield from (line for line, text in code_strings(path) if word.search(text))
    bare = name.replace("_", "")
    for entry in imports(path):
        last = entry.module.rpartition(".")[2].lower().lstrip("_")
        if entry.module.startswith(f"{room}.{name}") or last.replace("_", "").startswith(bare):
            yield entry.line


def stray_names(places: tuple[str, ...], names: set[str], room: str, allowed: set[tuple[str, str]]) -> list[str]:
    faults = []
    for path in inside(*places):
        own = path.relative_to(SRC)
        for name in sorted(names):
            if own.parts[:2] == ("tasks", name) or own.stem in (name, f"{name}_macs"):  # its own
                continue
            lines = sorted(set(namings(path, name, room)))
            if (own.as_posix(), name) in MAY_NAME:
                if lines:
                    allowed.add((own.as_posix(), name))
            else:
                faults += [f"{shown(path)}:{line}: names {name!r}" for line in lines]
    return faults


def test_above_the_registries_nobody_names_a_task_or_a_family() -> None:
    allowed: set[tuple[str, str]] = set()
    faults = stray_names(NAME_NO_TASK, names_of_tasks(), "tasks", allowed)
    faults += stray_names(NAME_NO_FAMILY, names_of_families(), "models", allowed)
    faults += [
        f"{path}: is in MAY_NAME for {name!r} and names it no more" for path, name in sorted({*MAY_NAME} - allowed)
    ]
    report(
        faults,
        "Ask the list (tasks/registry.py, families.py) instead of naming one of its entries, so that the "
        "next one needs no edit here. A documented default may be named: MAY_NAME of this file says which and why.",
    )


def test_commands_ask_one_list_of_models() -> None:
    tables = {"denoisers", "detectors", "segmentors"}
    faults = [
        f"{shown(entry.path)}:{entry.line}: imports {entry.module}"
        for path in inside("cli")
        for entry in imports(path)
        if entry.module.partition("models.")[2].partition(".")[0] in tables
    ]
    report(faults, "Each of these tables is of one task: ask models/listing.py, which knows them all.")


def test_a_task_imports_no_other_task() -> None:
    tasks = names_of_tasks()
    faults = [
        f"{shown(entry.path)}:{entry.line}: imports {entry.module}"
        for task in sorted(tasks)
        for path in inside(f"tasks/{task}")
        for entry in imports(path)
        if entry.module.partition("tasks.")[2].partition(".")[0] in tasks - {task}
    ]
    report(faults, "What two tasks share goes to a file of its own in tasks/, or below.")


def test_a_family_imports_no_other_family() -> None:
    families = names_of_families()
    assert families
    faults = [
        f"{shown(entry.path)}:{entry.line}: imports {entry.module}"
        for room in ("models", "checkpoints")
        for family in sorted(families)
        for path in (SRC / room).glob(f"{family}*.py")
        if path.stem in (family, f"{family}_variants")
        for entry in imports(path)
        for other in families - {family}
        if re.match(rf"{room}\.{other}(_variants)?(\.|$)", entry.module)
    ]
    report(faults, "What two families share goes to layers/, or to a file of its own in models/.")


def test_implementations_of_an_operator_do_not_know_each_other() -> None:
    def kind(name: str) -> str | None:
        return next((kind for kind in KINDS if name == kind or name.startswith(f"{kind}_")), None)

    faults = []
    for operator in sorted(names_of_operators()):
        for path in inside(f"ops/{operator}"):
            own = kind(path.stem)
            for entry in imports(path):
                room, _, rest = entry.module.partition(".")
                theirs = next(filter(None, map(kind, rest.split("."))), None) if room == "ops" else None
                if own and theirs and theirs != own:
                    faults.append(f"{shown(path)}:{entry.line}: imports {entry.module}")
    report(
        faults,
        "reference, chunked, cpu and triton of an operator never import each other: a mistake in one would be a "
        "mistake in what it is compared with. What they share goes to a file of its own.",
    )


def test_notices_go_through_one_channel() -> None:
    faults = []
    for path in python_files("src"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
                given = [ast.unparse(argument) for argument in (*node.args[1:2], *(k.value for k in node.keywords))]
                if "VisionSSMNotice" not in given:
                    faults.append(f"{shown(path)}:{node.lineno}: warns as something else")
    report(faults, "Warn with vision_ssm.errors.VisionSSMNotice, which the command prints as a note.")


def test_user_input_is_never_asserted() -> None:
    faults = [
        f"{shown(path)}:{node.lineno}"
        for path in python_files("src")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Assert)
    ]
    report(faults, "Raise an error that derives from VisionSSMError and says what was expected, what came, what to do.")


def test_every_room_has_its_tests_and_tests_mirror_the_rooms() -> None:
    tests = ROOT / "tests"
    faults = []
    for path in sorted(tests.rglob("test_*.py")):
        folder = path.parent.relative_to(tests)
        if folder.parts and folder.parts[0] not in TESTS_OF_SEVERAL_ROOMS and not (SRC / folder).is_dir():
            faults.append(f"{shown(path)}: there is no src/vision_ssm/{folder.as_posix()}")
    for package in sorted(SRC.rglob("__init__.py")):
        folder = package.parent.relative_to(SRC)
        if not folder.parts:
            continue
        own = [*(tests / folder).glob("**/test_*.py"), *(tests / folder.parent).glob(f"test_{folder.name}*.py")]
        if not own:
            faults.append(f"src/vision_ssm/{folder.as_posix()}: has no tests/{folder.as_posix()}/test_*.py")
    report(sorted(set(faults)), "The folders of tests/ are those of src/vision_ssm/.")


def calls(node: ast.AST) -> set[str]:
    """Bare names of everything that is called below a node."""
    functions = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    return {func.attr if isinstance(func, ast.Attribute) else ast.unparse(func) for func in functions}


def test_every_test_can_fail() -> None:
    proofs = {"raises", "warns", "fail", "opcheck", "gradcheck"}
    bodies = [(path, function) for path in python_files("tests") for function in functions(parsed(path))]
    called = [calls(function) for _, function in bodies]
    proving = [any(isinstance(node, ast.Assert) for node in ast.walk(function)) for _, function in bodies]
    found = -1
    while found != sum(proving):  # a function that calls one that proves something proves something
        found = sum(proving)
        proofs |= {function.name for (_, function), proves in zip(bodies, proving, strict=True) if proves}
        for number, names in enumerate(called):
            proving[number] = proving[number] or any(name in proofs or name.startswith("assert_") for name in names)
    faults = [
        f"{shown(path)}:{function.lineno}: {function.name}"
        for (path, function), proves in zip(bodies, proving, strict=True)
        if function.name.startswith("test_") and path.name.startswith("test_") and not proves
    ]
    report(faults, "A test that asserts nothing and expects no error proves nothing: say what must hold, or delete it.")
