"""What is printed arrives as text, whatever it holds and whatever the stream can take; or its loss is said."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.cells import cell_len

import vision_ssm.cli
from tests.cli.commands import TINY, Outcome, write_images
from vision_ssm.cli import console
from vision_ssm.cli.main import main

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\nerror: c\r\u202egpj.exe\u2066\u200e\x9b31m\x7f\u2028d"
OBEYED = set("\x1b\x07\r\u202e\u2066\u200e\x9b\x7f\u2028")


def on_stream(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> tuple[str, str]:
    """What a call writes on standard output and error of this encoding, both as strict as Python makes them."""
    raw = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(buffer, encoding=encoding, errors="strict", write_through=True) for buffer in raw]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with console.usable_streams():
        call()
    assert [stream.errors for stream in streams] == ["strict", "strict"]
    out, err = (buffer.getvalue().decode(encoding) for buffer in raw)
    return out, err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, \u732b \U0001f431 \u00e9", "plain text, \u732b \U0001f431 \u00e9"),
        ("\U0001f468\u200d\U0001f469 \u0646\u200c\u0647", "\U0001f468\u200d\U0001f469 \u0646\u200c\u0647"),  # joiners
        ("caf\udce9.png", r"caf\xe9.png"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31mred\x9b0m\x7f", r"\x1b[31mred\x9b0m\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert console.printable(text) == shown


@pytest.mark.parametrize(
    "call",
    [
        lambda: console.say(HOSTILE),
        lambda: console.complain(HOSTILE),
        lambda: console.note(HOSTILE),
        lambda: console.print_table(HOSTILE, (HOSTILE, "n"), [(HOSTILE, "1")], numeric=(HOSTILE,)),
        lambda: console.print_json({HOSTILE: HOSTILE}),
    ],
    ids=["say", "complain", "note", "table", "json"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "gbk"])
def test_no_way_out_lets_hostile_text_through(
    call: Callable[[], object], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = on_stream(call, monkeypatch, encoding)
    assert "2J" in out + err
    assert not OBEYED & set(out + err)
    assert not any(line.lstrip().startswith("error: c") for line in (out + err).splitlines())


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "gbk"])
def test_json_reads_back_from_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"path": "caf\udce9 \u732b \U0001f431 \u00e9 " + HOSTILE}
    out, _ = on_stream(lambda: console.print_json(value), monkeypatch, encoding)
    assert json.loads(out) == value


def test_commands_print_through_the_console_only() -> None:
    for path in Path(vision_ssm.cli.__file__).parent.glob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            assert name != "print", f"{path.name}:{node.lineno} prints by itself"


def command(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell, so that streams can be closed."""
    python = f'"{sys.executable}" -c "from vision_ssm.cli.main import entry_point; entry_point()"'
    line = f"{python} {' '.join(arguments)} {redirection}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is Linux's")
@pytest.mark.parametrize(
    "arguments", [["models", "vim_nano"], ["models", "--json"], ["--version"], ["--help"]], ids=str
)
def test_a_full_disk_behind_standard_output_is_one_error(arguments: list[str]) -> None:
    done = command(">/dev/full", *arguments)
    assert (done.returncode, done.stderr) == (2, "error: cannot write to standard output: No space left on device.\n")


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
@pytest.mark.parametrize(
    ("redirection", "arguments", "code"),
    [
        (">&-", "models vim_nano", 0),
        ("2>&-", "models vim_nano", 0),
        (">&- 2>&- <&-", "models vim_nano", 0),
        (">&- 2>&-", "nonsense", 2),
        ("| head -c 1", "models --json", 0),
        ("| true", "models", 0),
        ("| true", "--help", 0),
    ],
)
def test_closed_streams_and_readers_that_leave(redirection: str, arguments: str, code: int) -> None:
    done = command(redirection, arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("redirection", [">/dev/full", pytest.param("| head -1", marks=pytest.mark.slow)])
def test_training_outlives_a_screen_that_is_lost(redirection: str, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", count=4)
    options = [*TINY, "--epochs", "1", "--img-size", "16", "--output", str(tmp_path), "--name", "run"]
    done = command(redirection, "train", str(data), *options)
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert done.returncode == 0
    assert done.stderr.count("Training goes on unseen") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes")
def test_file_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")))
    assert main(["predict", str(folder)]) == 0
    assert r"d\xe9/caf\xe9." in capsys.readouterr().out
    assert main(["predict", str(folder), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert os.fsencode(result["path"]).endswith(b"/d\xe9/caf\xe9.png")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes")
def test_training_on_images_whose_names_are_no_text(tmp_path: Path, run: Callable[..., Outcome]) -> None:
    data = write_images(Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9")), count=4)
    (data / "dark" / "0.png").rename(Path(os.fsdecode(os.fsencode(data) + b"/dark/gar\xe7on.png")))
    options = [*TINY, "--epochs", "1", "--img-size", "16", "--output", tmp_path, "--name", "run"]
    outcome = run("train", data, *options)
    assert outcome.code == 0, outcome.err
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events[-1]["event"] == "finished"
    assert run("train", "--resume", tmp_path / "run").code == 0
    (data / "dark").rename(Path(os.fsdecode(os.fsencode(data) + b"/d\xe4rk")))
    outcome = run("train", data, *options, "--name", "other")
    assert outcome.code == 2
    assert "is no valid text" in outcome.err


WORDS = [("efficientvmamba_nano", "32 x 32", "1.35 M"), ("\u732b" * 9, "-", "80.27 M")]
HEADERS = ("model", "size of the input", "parameters")


@pytest.mark.parametrize("width", [30, 45, 60, 160])
def test_no_width_breaks_a_word_or_a_number_from_its_unit(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    console.print_table(None, HEADERS, WORDS, numeric=("parameters",))
    shown = capsys.readouterr().out
    for text in ("efficientvmamba_nano", "\u732b" * 9, "1.35 M", "80.27 M", "parameters", "input"):
        assert text in shown
    assert ("model: efficientvmamba_nano" in shown) == (width == 30)
    if width > 30:
        assert all(cell_len(line.rstrip()) <= width for line in shown.splitlines())


def test_a_pipe_without_columns_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console.console().width == console.WIDTH_WHEN_PIPED
    monkeypatch.setenv("COLUMNS", "72")
    assert console.console().width == 72


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_message_on_a_narrow_terminal_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("TERM", "xterm")
    console.complain("cannot open '/a/path/longer/than/the/terminal.png': no such file.")
    lines = ["error: cannot open", "'/a/path/longer/than/the/terminal.png':", "no such file."]
    assert re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines() == lines


def test_stages_are_shown_one_after_the_other_and_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with console.stage_bars() as on_stage:
        assert on_stage is not None
        for stage in ("looking", "scoring"):
            for done in range(3):
                on_stage(stage, done, 2)
    shown = screen.getvalue()
    assert shown.index("looking") < shown.index("scoring")
    assert "looking" not in shown[shown.index("scoring") :]
    assert "100%" in shown
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with console.stage_bars() as on_stage:
        assert on_stage is None
