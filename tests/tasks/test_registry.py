"""Tasks of other packages: real distributions with real entry points, on the path."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vision_ssm.cli.main import main
from vision_ssm.errors import ConfigError
from vision_ssm.settings import describe
from vision_ssm.tasks.registry import BUILT_IN, TaskInfo, find_task, task_names
from vision_ssm.training.config import TrainConfig, config_class

MODULE = """
from vision_ssm.settings import Section, Count, setting
from vision_ssm.tasks.registry import TaskInfo
from vision_ssm.tasks.settings import TaskSettings
from pydantic import Field

class Palette(Section):
    colours: Count = setting(4, "How many colours.")
    dither: bool = setting(False, "Whether to dither.")

class Settings(TaskSettings):
    {section}: Palette = Field(default_factory=Palette)

TASK = TaskInfo("{name}", "Colours of an image.", "{module}:Settings", "{module}:Task",
                {{"colours": "{section}.colours", "dither": "{section}.dither"}})
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(name: str, *, value: str = "", section: str = "palette", package: str = "", source: str = "") -> None:
        module, package = f"{name}_task", package or f"{name}-package"
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vision_ssm.tasks]\n{name} = {value or f'{module}:TASK'}\n")
        text = source or MODULE.format(name=name, module=module, section=section)
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return make


def test_what_is_built_in() -> None:
    assert task_names()[0] == "classification"
    info = find_task("classification")
    assert (info.load().name, info.load_settings().__name__) == ("classification", "ClassificationSettings")
    with pytest.raises(
        ConfigError, match=r"no task is called 'clasification'\. Did you mean 'classification'\? Tasks: c"
    ):
        find_task("clasification")


def test_a_task_of_another_package_brings_its_settings(install: Callable[..., None], tmp_path: Path) -> None:
    install("palettes")
    assert task_names() == [*BUILT_IN, "palettes"]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: palettes\npalette: {colours: 7}\n")
    config = TrainConfig.load(recipe, {"data.path": "images", "schedule.epochs": 3})
    assert (config.settings.palette.colours, config.settings.data.path) == (7, "images")
    assert TrainConfig.from_dict(config.to_dict()) == config
    keys = list(describe(config_class("palettes")))
    assert "palette.colours" in keys
    assert not any(key.startswith("augment.") or key == "data.crop_pct" for key in keys)
    with pytest.raises(ConfigError, match=r"unknown setting 'augment'"):
        config.replace(**{"augment.mixup": 0.1})
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown setting 'palette'"):
        TrainConfig.load(recipe, {"task": "classification"})


def test_help_and_schema_of_its_command_without_torch(install: Callable[..., None]) -> None:
    install("tints")
    code = (
        "import sys\nfrom vision_ssm.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\nassert not {'torch', 'numpy'} & set(sys.modules)"
    )

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, "train", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    own = said("--task", "tints", "--help")
    assert "--palette.colours" in own
    assert "--colours N" in own
    assert "--augment.mixup" not in own
    plain = said("--help")
    assert "--augment.mixup" in plain
    assert ", ".join([*BUILT_IN, "tints"]) in " ".join(plain.split())
    assert '"palette"' in said("--schema", "--task=tints")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "broken",
            {"source": "import nothing_of_this_name"},
            r"'broken' of broken-package cannot be loaded: ModuleNot",
        ),
        ("other", {"value": "json:dumps"}, r"'other' of other-package must be a TaskInfo of that name, got <function"),
        ("greedy", {"section": "optim"}, r"the task 'greedy' may not call its settings optim: every run has these"),
    ],
)
def test_a_package_that_is_at_fault_is_named_when_asked_for(
    install: Callable[..., None], name: str, options: dict[str, str], message: str
) -> None:
    install(name, **options)
    assert TrainConfig.load("digits").task == "classification"
    with pytest.raises(ConfigError, match=message):
        TrainConfig.load(None, {"task": name})


def test_parts_of_a_package_that_cannot_be_imported(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    source = """from vision_ssm.tasks.registry import TaskInfo
TASK = TaskInfo("halves", "Half.", "nothing_here:Settings", "nothing_here:Task", options="nothing_here:Options")"""
    install("halves", source=source)
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "--top-k" in capsys.readouterr().out
    assert main(["train", "images", "--task", "halves"]) == 2
    assert "nothing_here:Settings of the task 'halves' cannot be loaded: ModuleNotFoundError" in capsys.readouterr().err


def test_a_short_option_that_is_taken(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    source = MODULE.format(name="shorty", module="shorty_task", section="palette").replace('"dither"', '"json"')
    install("shorty", source=source)
    assert main(["train", "images", "--task", "shorty"]) == 2
    assert "the task 'shorty' has --json for palette.dither: the option is taken" in capsys.readouterr().err


def test_two_packages_with_one_name(install: Callable[..., None]) -> None:
    install("twice", package="first")
    install("twice", package="second")
    with pytest.raises(ConfigError, match=r"first and second each have a task called 'twice'"):
        find_task("twice")


def test_knowing_a_task_loads_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; from vision_ssm.tasks.registry import find_task; find_task('classification');"
        "sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert TaskInfo("a", "b", "c:D", "e:F").short == {}


@pytest.mark.parametrize(
    "command", [["train"], *(["train", "--task", task] for task in BUILT_IN), ["data", "check"]], ids=" ".join
)
def test_a_home_that_nobody_has_is_said(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "~nobody-of-this-name/images"]) == 2
    assert "starts with a home folder that cannot be found; write the path." in capsys.readouterr().err
