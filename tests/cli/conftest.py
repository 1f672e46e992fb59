"""The command in this process, and a run trained with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.commands import TINY, Outcome, write_images
from vision_ssm.cli.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command in this process: quick, and with its exit code and both outputs."""

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes that anything can tell apart."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on these images."""
    output = tmp_path_factory.mktemp("runs")
    arguments = ["train", str(images), "--output", str(output), "--name", "first", "--epochs", "3", *TINY]
    assert main([*arguments, "--lr", "0.01", "--data.val_fraction", "0.25"]) == 0
    return output / "first"
