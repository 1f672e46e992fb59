"""`vision-ssm completion`: scripts that complete what the commands understand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.commands import python
from vision_ssm.cli.main import COMMANDS, build_parser


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, made without torch."""
    done = python(
        "import sys\nfrom vision_ssm.cli.main import main\nassert main(['completion', 'bash']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(done.stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["tra"], {"train"}),
        (["models", "--j"], {"--json"}),
        (["train", "images/", "--amp", ""], {"none", "bf16", "fp16"}),
        (["train", "images/", "--model", "efficientvmamba_t"], {"efficientvmamba_tiny"}),
        (["train", "images/", "--task", "seg"], {"segmentation"}),
        (["train", "images/", "--schedule.pati"], {"--schedule.patience"}),
        (["cost", "vim_nan"], {"vim_nano"}),
        (["predict", "--model", "vim_tiny_casc"], {"vim_tiny_cascade_mask_rcnn"}),
        (["cost", "vmamba_tiny_s1l8_up"], {"vmamba_tiny_s1l8_upernet_ade20k"}),
        (["bench", "--models", "vmamba_nan"], {"vmamba_nano"}),
        (["data", ""], {"check", "pack", "index"}),
        (["completion", "z"], {"zsh"}),
        (["predict", "photo"], set()),  # bash then completes names of files
    ],
)
def test_bash_offers_what_may_follow(script: Path, typed: list[str], offered: set[str]) -> None:
    asked = 'source "$1"; shift; COMP_WORDS=(vision-ssm "$@"); COMP_CWORD=$#; _vision_ssm; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        [str(shutil.which("bash")), "-c", asked, "bash", script, *typed],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": ""},
    )
    assert set(done.stdout.split()) == offered
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_there(run, shell: str) -> None:
    outcome = run("completion", shell)
    assert outcome.code == 0, outcome.err
    _, parsers = build_parser()
    for name in COMMANDS:
        parsers[name].declare()
        assert name in outcome.out
        for action in parsers[name]._actions:
            for option in action.option_strings:
                if option.startswith("--"):
                    assert (f"-l {option[2:]} " if shell == "fish" else option) in outcome.out
    if shell != "bash" and shutil.which(shell):
        subprocess.run([shell, "-n"], input=outcome.out, text=True, check=True)


def test_an_unknown_shell(run) -> None:
    outcome = run("completion", "csh")
    assert outcome.code == 2
    assert "must be one of bash, zsh, fish, got 'csh'" in outcome.err
