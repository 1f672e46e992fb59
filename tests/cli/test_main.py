"""What holds for every command: help without torch, exit codes, spelling help, no tracebacks."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import warnings

import pytest

import vision_ssm.cli.main
from tests.cli.commands import python
from vision_ssm.cli.main import COMMANDS, build_parser
from vision_ssm.errors import VisionSSMError, VisionSSMNotice


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_needs_no_heavy_import(arguments):
    refused = {"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib"}
    refused |= {"pydantic"} if not {"train", "predict", "evaluate", "sample"} & {*arguments} else set()
    code = (
        "import sys\nfrom vision_ssm.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert not end.code\n"
        f"heavy = {refused} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "usage: vision-ssm" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_it_can_parse(name, monkeypatch):
    module = COMMANDS[name]
    lines = re.findall(r"^ +((?:\w+=\w+ )?vision-ssm .*)$", module.EXAMPLES, re.MULTILINE)
    assert lines
    program, _ = build_parser()
    for line in lines:
        words = line.partition("vision-ssm ")[2].split()
        options, unknown = program.parse_known_args(words)
        assert options.command == name
        assert list(module.accept(options, unknown)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evalute"],
            "one of train, evaluate, predict, sample, features, export, data, models, cost, bench, doctor, completion, "
            "got 'evalute'. "
            "Did you mean 'evaluate'?",
        ),
        (["doctor", "--jsn"], "unknown option '--jsn'. Did you mean '--json'? See `vision-ssm doctor --help`."),
        (["predict", "w", "i", "--topk", "3"], "unknown option '--topk'. Did you mean '--top-k'?"),
        (["predict", "w.pth"], "the following arguments are required: IMAGES. See `vision-ssm predict --help`."),
        (["predict"], "the following arguments are required: IMAGES. See `vision-ssm predict --help`."),
        (["predict", "w", "i", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["predict", "w", "i", "--top-k", "many"], "--top-k: top_k must be a whole number, got 'many'"),
        (["features", "w.pth", "--output", "o"], "arguments are required: IMAGES. See `vision-ssm features --help`."),
        (["features", "i.png"], "one of the arguments --output --shards is required"),
        (["features", "i.png", "--output", "o", "--layers", "last"], "expected layers such as 5,11 or -1, or all; got"),
        (["predict", "w", "i", "--img-size", "big"], "expected a side such as 224 or HEIGHTxWIDTH"),
        (["predict", "w", "i", "--output", "p.txt"], "expected a file name that ends in .json or .csv, got 'p.txt'"),
        (["cost", "m", "--img-size", "-224"], "an image has at least one pixel per side, got -224"),
        (["cost", "m", "--img-size", "0x32"], "an image has at least one pixel per side, got 0x32"),
        (["cost", "m", "--img-size", "big"], "expected a side such as 224 or HEIGHTxWIDTH such as 224x320, got 'big'"),
        (
            ["cost", "m", "--batch", "8"],
            "there is no --batch: here it is called --batch-size. See `vision-ssm cost --help`.",
        ),
        (["bench", "--sizes", "224", "--models", "m"], "there is no --sizes: here it is called --img-size."),
        (["features", "i.png", "--output", "o", "--maps=-1"], "there is no --maps: here it is called --layers."),
        (["cost", "m", "--layers", "2"], "there is no --layers: here it is called --depth."),
        (["predict", "i.png", "--dtype", "bf16"], "there is no --dtype: here it is called --amp."),
        (["export", "w", "--format", "onx"], "--format must be one of onnx, openvino, torch, aoti, got 'onx'. Did you"),
        (["export", "w", "--dynamic", "batch,batch"], "expected some of batch,size, got 'batch,batch'"),
        (["doctor", "now"], "unexpected argument 'now'"),
        (["models", "nonsense"], "no model of this library has 'nonsense' in its name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_clean_message_and_exit_code_2(run, arguments, message):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_no_command_shows_the_help(run):
    outcome = run()
    assert outcome.code == 2
    assert "COMMAND" in outcome.out


def test_version(run):
    assert re.fullmatch(r"vision-ssm \d+\.\d+\.\d+\S*\n", run("--version").out)


def test_the_installed_command_leaves_with_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-c", "from vision_ssm.cli.main import entry_point; entry_point()", "doktor"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Did you mean 'doctor'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (VisionSSMError("told"), 2)])
def test_interruptions_and_errors_have_their_codes(run, monkeypatch, raised, code):
    def fail(_):
        raise raised

    monkeypatch.setattr(vision_ssm.cli.main.COMMANDS["doctor"], "run", fail)
    outcome = run("doctor")
    assert outcome.code == code
    assert outcome.err.startswith("error: ")


def test_a_file_that_cannot_be_fetched_is_asked_for_in_the_words_of_the_command(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("vision_ssm.checkpoints.hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    told = "could not get vim_t_midclstok_76p1acc.pth from huggingface.co/hustvl/Vim-tiny-midclstok"
    outcome = run("train", images, "--recipe", "finetune", "--pretrained", "--output", tmp_path / "runs")
    assert outcome.code == 2
    assert told in outcome.err
    advice = "Download the file where there is a network and say --checkpoint vim_t_midclstok_76p1acc.pth in place of"
    assert f"{advice} --pretrained." in outcome.err
    outcome = run("predict", "vim_tiny_patch16_224", images)
    assert told in outcome.err
    typed = "vision-ssm predict vim_t_midclstok_76p1acc.pth --model vim_tiny_patch16_224 ..."
    assert f"give it and its model in place of the name: {typed}" in outcome.err
    outcome = run("evaluate", "vmamba_tiny_s1l8", images)
    assert f"put it into {tmp_path}/hub/checkpoints, or give it and its model" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_fault_of_the_library_is_not_hidden(run, monkeypatch):
    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(vision_ssm.cli.main.COMMANDS["doctor"], "run", fail)
    with pytest.raises(ZeroDivisionError):
        run("doctor")


def test_warnings_of_others_and_filters_of_the_user_stay_what_they_are(run, monkeypatch):
    def warn(_):
        warnings.warn("theirs", UserWarning, stacklevel=1)
        warnings.warn("ours", VisionSSMNotice, stacklevel=1)
        return 0

    monkeypatch.setattr(vision_ssm.cli.main.COMMANDS["doctor"], "run", warn)
    with pytest.warns(UserWarning, match="theirs") as told:
        assert run("doctor").err == "note: ours\n"
    assert [str(warning.message) for warning in told] == ["theirs"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run("doctor").err == ""
    with pytest.warns(VisionSSMNotice, match="again"):  # after the command notices are warnings again
        warnings.warn("again", VisionSSMNotice, stacklevel=1)


def test_sigint_number():
    assert 128 + signal.SIGINT == vision_ssm.cli.main.INTERRUPTED
