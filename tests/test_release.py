"""The workflows run what runs anywhere, and a tag is released only if version and changelog agree with it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SET_UP = {"choco install make"}  # what a machine lacks before it can make anything


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job.get("steps", [])]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["release", "tests", "wheels"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_of_a_workflow_is_a_make_target(workflow: Path) -> None:
    matrix = re.findall(r"target: \[(.*)\]", workflow.read_text())
    named = {name.strip() for names in matrix for name in names.split(",")}
    for command in [step["run"] for step in steps(workflow) if "run" in step]:
        if command in SET_UP:
            continue
        called = re.fullmatch(r"make (\$\{\{ matrix\.target \}\}|[a-z-]+)((?: [A-Z]+=\S+)*)", command)
        assert called, f"{command!r} should be a make target, so that it can be run and tested without the workflow"
        assert (named if "matrix" in called[1] else {called[1]}) <= targets(), command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_their_major_version(workflow: Path) -> None:
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@(release/)?v\d+", action), action


def test_the_oldest_python_and_torch_that_are_promised_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]["strategy"]
    assert f">={matrix['matrix']['python'][0]}" == project["requires-python"]
    done = subprocess.run([sys.executable, ROOT / ".ci" / "oldest.py"], capture_output=True, text=True, check=True)
    pinned = dict(line.split("==") for line in done.stdout.splitlines() if not line.startswith("#"))
    for requirement in project["dependencies"]:
        name, lowest = requirement.split(">=")
        if name in ("torch", "torchvision", "timm"):
            assert pinned[name] == lowest
    assert "numpy" in pinned
    assert "triton" not in pinned


@pytest.fixture
def release(tmp_path: Path) -> Any:
    """The check of a tag on a copy of the project with another version or changelog."""
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "check_release.py"
    script.write_text((ROOT / ".ci" / "check_release.py").read_text())

    def check(*tag: str, changelog: str = "## [0.2.0] - 2026-12-01\n", version: str = "0.2.0") -> tuple[int, str]:
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
        (tmp_path / "CHANGELOG.md").write_text(
            f"# Changelog\n\n## [Unreleased]\n\n{changelog}\n## [0.1.0] - 2026-11-28\n"
        )
        done = subprocess.run([sys.executable, script, *tag], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return check


def test_a_tag_that_agrees_is_released(release: Any) -> None:
    assert release("v0.2.0") == (0, "v0.2.0 may be released\n")


@pytest.mark.parametrize(
    ("tag", "changes", "message"),
    [
        ("0.2.0", {}, "a tag is v and a version, such as v0.2.0; got '0.2.0'"),
        ("v0.1.0", {}, "the tag is v0.1.0 and pyproject.toml says version 0.2.0"),
        ("v0.2.0", {"changelog": ""}, r"CHANGELOG.md has no section [0.2.0]: turn what is under [Unreleased] into it"),
        ("v0.2.0", {"changelog": "## [0.2.0]\n"}, "the section [0.2.0] of CHANGELOG.md needs its date"),
        ("v0.2.0", {"changelog": "## [0.2.0] - soon\n"}, "needs its date: - YYYY-MM-DD; got 'soon'"),
    ],
)
def test_a_tag_that_does_not_is_refused(release: Any, tag: str, changes: dict[str, str], message: str) -> None:
    code, told = release(tag, **changes)
    assert code == 1
    assert message in told


def test_without_a_tag_the_use_is_shown(release: Any) -> None:
    assert release() == (2, "name the tag: make check-release TAG=v0.1.0\n")


def test_the_changelog_knows_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert version in sections
