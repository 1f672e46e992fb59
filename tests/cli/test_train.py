"""`vision-ssm train`: what the options become, what a run leaves, and what wrong settings are answered."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import vision_ssm
from tests.cli.commands import TINY, Outcome, write_images
from vision_ssm.cli.main import build_parser
from vision_ssm.cli.train import accept, configuration
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.registry import BUILT_IN
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.recipes import list_recipes


def parse(*arguments: str) -> TrainConfig:
    program, parsers = build_parser()
    options, unknown = program.parse_known_args(["train", *arguments])
    parsers["train"].refuse_unknown(accept(options, unknown))
    return configuration(options)


def test_every_everyday_option_reaches_its_setting():
    config = parse(
        "images", "--model", "vim_tiny_patch16_224", "--epochs", "7", "--batch-size", "12", "--img-size", "64x96",
        "--lr", "1e-3", "--device", "cpu", "--amp", "--pretrained", "--workers", "3", "--seed", "5", "--name", "n",
        "--output", "o", "--download", "--overwrite",
    )  # fmt: skip
    assert config.data.path == "images"
    assert config.model.name == "vim_tiny_patch16_224"
    assert (config.schedule.epochs, config.data.batch_size, config.data.workers) == (7, 12, 3)
    assert config.model.img_size == (64, 96)
    assert config.optim.lr == 1e-3
    assert (config.run.device, config.run.amp, config.run.seed) == ("cpu", "bf16", 5)
    assert config.run_folder == Path("o/n")
    assert config.model.pretrained and config.data.download and config.run.overwrite


def test_any_setting_has_a_dotted_option_and_model_options_are_free():
    config = parse(
        "1234", "--schedule.warmup_epochs", "5", "--augment.scale=[0.5, 1]", "--ema.decay", "null",
        "--model.options.class_token", "head", "--model.options.layer_scale=1e-4", "--amp=none",
    )  # fmt: skip
    assert config.data.path == "1234"  # text stays text
    assert config.schedule.warmup_epochs == 5
    assert config.augment.scale == (0.5, 1.0)
    assert config.ema.decay is None
    assert config.model.options["class_token"] == "head"


def test_options_win_over_the_recipe(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("optim: {lr: 0.5, weight_decay: 0.25}\nschedule: {epochs: 9}\n")
    config = parse("images", "--recipe", str(recipe), "--lr", "0.125")
    assert (config.optim.lr, config.optim.weight_decay, config.schedule.epochs) == (0.125, 0.25, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "unknown option '--epoch'. Did you mean '--epochs'?"),
        (["--schedule.warmup_epoch", "3"], "Did you mean '--schedule.warmup_epochs'?"),
        (["--epochs", "0"], "schedule.epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "data.batch_size must be at least 1, got 0"),
        (["--batch-size=-4"], "data.batch_size must be at least 1, got -4"),
        (["--img-size=-32"], "an image has at least one pixel per side"),
        (["--lr", "fast"], "optim.lr must be a number, got 'fast'"),
        (["--amp", "fp8"], "--amp must be one of none, bf16, fp16, got 'fp8'"),
        (["--optim.betas", "[0.9"], "optim.betas must be"),
        (["--recipe", "digts"], "Did you mean 'digits'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_are_named(run, arguments, message):
    outcome = run("train", "images", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_unknown_recipe_key_names_file_and_nearest_key(run, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim:\n  learning_rat: 1\n  weight_deca: 0.1\n")
    outcome = run("train", "images", "--recipe", recipe)
    assert outcome.code == 2
    assert "mine.yaml" in outcome.err
    assert "optim." in outcome.err


def test_run_leaves_what_it_promises_and_reports_it(run, images, tmp_path):
    outcome = run("train", images, "--output", tmp_path, "--name", "n", "--epochs", "1", *TINY)
    assert outcome.code == 0, outcome.err
    left = {file.name for file in (tmp_path / "n").iterdir()}
    assert {"config.yaml", "log.jsonl", "best.safetensors", "last.safetensors", "curve.png"} <= left
    saved = TrainConfig.load(tmp_path / "n" / "config.yaml")
    assert saved.model.options == {"depth": 1, "embed_dim": 32}
    assert outcome.out.startswith("Data: to train on, 20 images of 2 classes (dark 10, light 10) in ")
    assert "Effective configuration" in outcome.out
    assert "embed_dim: 32" in outcome.out
    assert "epoch 1/1" in outcome.out
    unwrapped = "".join(outcome.out.split())  # the table breaks a long path
    assert str(tmp_path / "n" / "best.safetensors") in unwrapped
    assert "\x1b" not in outcome.out  # no terminal, no control sequences


def test_a_short_name_trains_the_model_and_is_kept_as_the_full_one(run, images, tmp_path):
    options = ["--img-size", "32", *TINY, "--epochs", "1", "--output", tmp_path]
    outcome = run("train", images, "--model", "vim_tiny", *options)
    assert outcome.code == 0, outcome.err
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("vim_tiny-")
    assert vision_ssm.load_model(folder).info.model == "vim_tiny_patch16_224"
    outcome = run("train", "--resume", folder)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_any_model_of_timm_trains_at_any_size_and_predicts(run, images, tmp_path, model):
    options = ["--img-size", "64", "--batch-size", "16", "--workers", "0", "--epochs", "1"]
    outcome = run("train", images, "--model", model, *options, "--output", tmp_path, "--name", "n", "--json")
    assert outcome.code == 0, outcome.err
    outcome = run("predict", tmp_path / "n", images / "dark" / "0.png")
    assert outcome.code == 0, outcome.err


def test_the_easy_images_are_learned(trained):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert log[-1]["event"] == "finished"
    assert log[-1]["best_scores"]["top1"] == 1.0


def test_a_used_folder_is_refused_and_resume_of_a_finished_run_reports_it(run, images, trained):
    again = run("train", images, "--output", trained.parent, "--name", "first", *TINY)
    assert again.code == 2
    assert "already holds a run" in again.err
    resumed = run("train", "--resume", trained, "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["best_scores"]["top1"] == 1.0


def test_resume_without_a_name_continues_the_run_the_options_name(run, images, tmp_path):
    options = ["train", images, "--output", tmp_path, "--name", "n", "--epochs", "1", *TINY]
    assert run(*options).code == 0
    assert run(*options).code == 2
    resumed = run(*options, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resumed after" in resumed.out


def test_folds_are_run_in_turn_and_their_scores_come_to_a_mean(run, images, tmp_path):
    options = ["train", images, "--output", tmp_path, "--name", "n", "--epochs", "1", *TINY, "--data.folds", "2"]
    outcome = run(*options)
    assert outcome.code == 0, outcome.err
    for text in ("Best of each fold", "n-fold0", "n-fold1", "mean", "deviation", str(tmp_path / "n-folds.json")):
        assert text in outcome.out
    again = run(*options, "--resume", "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert found["mean"] == json.loads((tmp_path / "n-folds.json").read_text())["mean"]
    assert [Path(part["folder"]).name for part in found["runs"]] == ["n-fold0", "n-fold1"]
    refused = run(*options, "--dry-run")
    assert refused.code == 2
    assert "--data.fold 0" in refused.err


def test_an_unreadable_file_says_how_to_train_without_it(run, tmp_path):
    folder = write_images(tmp_path / "data")
    (folder / "dark" / "3.png").write_bytes(b"")
    options = ["train", folder, "--output", tmp_path / "runs", "--name", "n", "--epochs", "1", *TINY]
    refused = run(*options)
    assert refused.code == 2
    assert "3.png" in refused.err and "--skip-unreadable" in refused.err
    outcome = run(*options, "--skip-unreadable")
    assert outcome.code == 0, outcome.err
    assert "Left out, as they cannot be read: 1 of the images to train on" in outcome.out + outcome.err


def test_resume_of_nothing(run, tmp_path):
    outcome = run("train", "--resume", tmp_path / "none")
    assert outcome.code == 2
    assert "nothing to resume" in outcome.err


def test_dry_run_tells_the_size_and_writes_nothing(run, images, tmp_path):
    outcome = run("train", images, "--output", tmp_path, "--epochs", "4", "--dry-run", "--json", *TINY)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["updates"] == 4 * found["updates_per_epoch"]
    assert found["images_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "empty", "empty class"])
def test_unusable_data(run, tmp_path, kind):
    folder = tmp_path / "data"
    if kind != "missing":
        folder.mkdir()
    if kind == "empty class":
        write_images(folder, count=2)
        (folder / "nothing").mkdir()
    outcome = run("train", folder, "--output", tmp_path / "runs", *TINY)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert str(folder) in outcome.err or "nothing" in outcome.err


def test_unknown_model_and_model_option(run, images, tmp_path):
    outcome = run("train", images, "--model", "vim_tinny_patch16_224", "--output", tmp_path)
    assert outcome.code == 2
    assert "Did you mean 'vim_tiny_patch16_224'?" in outcome.err
    outcome = run("train", images, "--model.options.clas_token", "head", "--output", tmp_path)
    assert outcome.code == 2
    assert "class_token" in outcome.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_output_folder_not_writable(run, images, tmp_path):
    tmp_path.chmod(0o500)
    outcome = run("train", images, "--output", tmp_path, *TINY)
    tmp_path.chmod(0o700)
    assert outcome.code == 2
    assert "cannot write to output folder" in outcome.err


def test_output_folder_below_a_file(run, images, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run("train", images, "--output", tmp_path / "file", *TINY)
    assert outcome.code == 2
    assert "cannot write to output folder" in outcome.err


def test_lengths_in_updates():
    config = parse("images", "--recipe", "digits", "--updates", "50", "--schedule.warmup_updates", "5")
    assert (config.schedule.updates, config.schedule.epochs) == (50, None)
    assert (config.schedule.warmup_updates, config.schedule.warmup_epochs) == (5, 0.0)
    assert parse("images", "--recipe", "digits", "--schedule.name", "step", "--schedule.drops", "[3, 5]").schedule.drops


@pytest.mark.parametrize("task", BUILT_IN)
def test_the_schema_is_that_of_every_recipe(run, task):
    outcome = run("train", "--task", task, "--schema")
    assert outcome.code == 0
    schema = json.loads(outcome.out)
    definitions = schema["$defs"]
    sections = {name: definitions[field["$ref"].rpartition("/")[2]] for name, field in schema["properties"].items()
                if "$ref" in field}  # fmt: skip
    assert schema["properties"]["task"]["const"] == task
    assert not schema["additionalProperties"]
    recipes = [config.to_dict() for config in map(TrainConfig.load, list_recipes()) if config.task == task]
    assert recipes
    for recipe in recipes:
        for section, values in recipe.items():
            assert section == "task" or set(values) == set(sections[section]["properties"])
    rate = sections["optim"]["properties"]["lr"]
    assert (rate["type"], rate["exclusiveMinimum"], rate["default"]) == ("number", 0, 1e-3)
    assert sections["run"]["properties"]["amp"]["enum"] == ["none", "bf16", "fp16"]


def test_the_task_may_be_named_anywhere(run, tmp_path):
    for arguments in (["--task", "clasification"], ["--task=clasification", "--help"]):
        outcome = run("train", "images", *arguments)
        assert outcome.code == 2
        assert "no task is called 'clasification'. Did you mean 'classification'?" in outcome.err
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: segmentatoin\n")
    outcome = run("train", "images", "--recipe", recipe)
    assert "mine.yaml: no task is called 'segmentatoin'." in outcome.err
    assert parse("images", "--recipe", str(recipe), "--task", "classification").task == "classification"


def test_configuration_errors_are_config_errors():
    with pytest.raises(ConfigError, match="warmup_epochs"):
        parse("images", "--epochs", "2", "--schedule.warmup_epochs", "3")


def test_training_inside_the_data_folder_and_from_a_wrong_path(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "data", count=4)
    monkeypatch.chdir(tmp_path / "data")
    options = [*TINY, "--epochs", "1", "--img-size", "16"]
    for name in ("one", "two"):
        outcome = run("train", ".", *options, "--name", name)
        assert outcome.code == 0, outcome.err
        assert "2 classes (dark, light); 6 images to train on, 2 held out" in outcome.out
    assert "training runs (runs/one/)" in outcome.err
    assert run("train", "nowhere", *options, "--output", "elsewhere").code == 2
    assert not Path("elsewhere").exists()


def test_a_single_class_is_nothing_to_learn(run: Callable[..., Outcome], tmp_path: Path) -> None:
    write_images(tmp_path / "data", ("cat",), count=4)
    outcome = run("train", tmp_path / "data", *TINY, "--epochs", "1", "--output", tmp_path)
    assert outcome.code == 2
    assert "there is nothing to learn: all images of 'data' are of one class, 'cat'" in outcome.err
