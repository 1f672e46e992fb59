from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vision_ssm.checkpoints import vim
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.models.registry import create_model
from vision_ssm.training import estimate, results, train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.engine import Progress
from vision_ssm.training.events import EpochDone, Event, Interrupted, Notice, RunStarted, StepDone
from vision_ssm.training.results import write_pictures
from vision_ssm.training.state import read_state
from vision_ssm.weights.files import load_weights, read_info

Tiny = Callable[..., TrainConfig]


def resumed(config: TrainConfig, **overrides: Any) -> TrainConfig:
    return config.replace(**{"run.resume": str(config.run_folder), "run.overwrite": False, **overrides})


def final(config: TrainConfig) -> dict[str, torch.Tensor]:
    return read_state(config.run_folder)[0]["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_run_leaves(tiny: Tiny) -> None:
    config = tiny(**{"ema.decay": 0.5, "run.log_every": 3})
    result = train(config)
    folder = config.run_folder
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "log.jsonl", "last.ckpt", "previous.ckpt", "best.safetensors", "last.safetensors",
        "curve.png", "log.csv", "confusion.png", "predictions.png", "mistakes.png", "calibration.png",
    }  # fmt: skip
    assert TrainConfig.load(folder / "config.yaml") == config
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [event["update"] for event in events if event["event"] == "step_done"] == [1, 3, 5, 6, 9, 10]
    epochs = [event for event in events if event["event"] == "epoch_done"]
    assert [set(event["scores"]) for event in epochs] == [{"top1", "loss"}] * 2
    best = max(event[kind]["top1"] for event in epochs for kind in ("scores", "ema_scores"))
    info = read_info(folder / "best.safetensors")
    assert info.metrics["top1"] == result.best_scores["top1"] == best
    assert (info.model, info.task, info.class_names) == ("vim_nano", "classification", ("grey0", "grey1", "grey2"))
    assert load_weights(folder / "best.safetensors").model.num_classes == 3
    assert info.preprocessing.input_size == (3, 8, 8)
    average = read_state(folder)[0]["ema"]
    assert same(load_weights(folder / "last.safetensors").model.state_dict(), average)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("moment", ["StepDone", "EvaluationStep"])
def test_interrupted_and_resumed(tiny: Tiny, everything_on: dict[str, Any], name: str, moment: str) -> None:
    whole, broken = (tiny(**{**everything_on, "run.name": part}) for part in ("whole", "broken"))
    train(whole)
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        if type(event).__name__ == moment and sum(type(e).__name__ == moment for e in seen) == 2:
            signal.raise_signal(getattr(signal, name))

    before = signal.getsignal(signal.SIGINT)
    result = train(broken, on_event=listen)
    assert signal.getsignal(signal.SIGINT) is before
    assert result.interrupted == name
    assert isinstance(seen[-1], Interrupted)
    assert seen[-1].update == result.updates == 3
    finished = train(resumed(broken))
    assert (finished.interrupted, finished.updates) == (None, 6)
    assert same(final(whole), final(broken))


@pytest.fixture
def listens_to_ctrl_c() -> Iterator[None]:
    """As in a terminal; a process started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_a_second_signal_acts_at_once(tiny: Tiny) -> None:
    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), on_event=listen)


@pytest.mark.parametrize(("eval_every", "patience", "ends"), [(1, 2, 4), (2, 1, 4), (2, 3, 6), (1, None, 8)])
def test_patience_ends_a_run_that_gets_no_better(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, eval_every: int, patience: int | None, ends: int
) -> None:
    shares = {1: 0.5, 2: 0.7}  # by epoch; worse ever after
    seen: list[Event] = []

    def scores(meter: Any, task: Any) -> dict[str, float]:
        done = sum(isinstance(event, EpochDone) for event in seen)
        return {"top1": shares.get(done + 1, 0.6), "loss": 1.0}

    monkeypatch.setattr("vision_ssm.training.run.read_scores", scores)
    config = tiny(**{"schedule.epochs": 8, "schedule.patience": patience, "run.eval_every": eval_every})
    result = train(config, on_event=seen.append)
    epochs = [event.epoch for event in seen if isinstance(event, EpochDone)]
    assert (epochs[-1], result.best_epoch, result.interrupted) == (ends, 2, None)
    told = [event.message for event in seen if isinstance(event, Notice)]
    early = f"Ended after epoch {ends}: top-1 was best in epoch 2 (schedule.patience)."
    assert told == ([early] if patience is not None else [])
    again = train(resumed(config))
    assert again.updates == result.updates, "it stays ended"


@pytest.mark.usefixtures("listens_to_ctrl_c")
@pytest.mark.parametrize("epochs", [0, 1])
def test_pictures_are_drawn_of_a_run_that_is_stopped(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    drawn: list[Path] = []

    def draw(folder: Any, engine: Any) -> None:
        drawn.append(folder.path)
        signal.raise_signal(signal.SIGINT)  # once more, while the pictures are drawn

    monkeypatch.setattr("vision_ssm.training.results.write_pictures", draw)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.step) == (epochs + 1, 1):
            signal.raise_signal(signal.SIGINT)

    config = tiny()
    result = train(config, on_event=listen)
    assert result.interrupted == "SIGINT"
    assert drawn == [config.run_folder] * epochs


def test_used_folders(tiny: Tiny) -> None:
    config = tiny(**{"schedule.epochs": 1})
    with pytest.raises(ConfigError, match=r"nothing to resume: .*run holds no run"):
        train(resumed(config))
    train(config)
    (config.run_folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"already holds a run \(config\.yaml\)\. Continue it with --resume"):
        train(config)
    # A fault found before the first update leaves the old run alone.
    with pytest.raises(DataError):
        train(config.replace(**{"run.overwrite": True, "data.path": "nowhere"}))
    assert (config.run_folder / "last.ckpt").exists()
    train(config.replace(**{"run.overwrite": True, "optim.lr": 1e-4}))
    assert (config.run_folder / "notes.txt").read_text() == "mine"
    assert TrainConfig.load(config.run_folder / "config.yaml").optim.lr == 1e-4


def test_output_that_cannot_be_written(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to output folder .*file.*choose another one"):
        train(tiny(**{"run.output": str(tmp_path / "file")}))


def test_resuming_only_the_same_run(tiny: Tiny, images: Path, tmp_path: Path) -> None:
    config = tiny(**{"schedule.epochs": 1})
    train(config)
    with pytest.raises(ConfigError) as it:
        train(resumed(config, **{"optim.lr": 1e-4, "data.batch_size": 4, "run.log_every": 7}))
    assert "optim.lr was 0.002 and is 0.0001" in str(it.value)
    assert "data.batch_size was 8 and is 4" in str(it.value)
    assert "log_every" not in str(it.value)
    with pytest.raises(ConfigError, match=r"schedule\.epochs was 1 and is 2"):
        train(resumed(config, **{"schedule.epochs": 2}))
    assert TrainConfig.load(config.run_folder / "config.yaml") == config
    # Another folder with the same images is the same data; one image less is not.
    moved = tmp_path / "moved"
    moved.symlink_to(images)
    assert train(resumed(config, **{"data.path": str(moved), "schedule.cooldown_epochs": 1})).updates == 10
    with pytest.raises(ConfigError, match="the training images differ; the held-out images differ"):
        train(resumed(config, **{"data.path": str(images / "train"), "schedule.cooldown_epochs": 1}))


def test_more_epochs_of_a_constant_rate(tiny: Tiny) -> None:
    long, short = (
        tiny(**{"run.name": str(epochs), "schedule.name": "constant", "schedule.epochs": epochs}) for epochs in (2, 1)
    )
    train(long)
    train(short)
    train(resumed(short, **{"schedule.epochs": 2}))
    assert same(final(long), final(short))


def test_what_a_cut_epoch_reports(tiny: Tiny) -> None:
    config = tiny(**{"schedule.epochs": None, "schedule.updates": 7, "run.log_every": 100, "run.eval_every": 2})
    seen: list[Event] = []
    train(config, on_event=seen.append)
    started, epochs = seen[0], [event for event in seen if isinstance(event, EpochDone)]
    assert isinstance(started, RunStarted)
    assert (started.epochs, started.updates, started.updates_per_epoch) == (2, 7, 5)
    assert [event.update for event in epochs] == [5, 7]
    assert [event.scores is None for event in epochs] == [True, False]
    losses = [event.loss for event in seen if isinstance(event, StepDone)]
    assert epochs[1].train_loss == pytest.approx(sum(losses[5:]) / 2)
    assert epochs[1].images_per_second == pytest.approx(2 * 8 / epochs[1].seconds)
    logged = [json.loads(line) for line in (config.run_folder / "log.jsonl").read_text().splitlines()]
    assert [event["update"] for event in logged if event["event"] == "step_done"] == [1, 5, 7]


def test_nothing_written_yet_starts_over(tiny: Tiny) -> None:
    config = tiny(**{"schedule.epochs": 1})
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.yaml").write_text(config.to_yaml())
    seen: list[Event] = []
    assert train(resumed(config), on_event=seen.append).updates == 5
    assert isinstance(seen[0], RunStarted)
    assert seen[0].resumed_at is None
    (told,) = [event.message for event in seen if isinstance(event, Notice)]
    assert seen[0].data.startswith("to train on, 40 images of 3 classes (grey0 14, grey1 13, grey2 13) in ")
    assert "no checkpoint yet" in told


@pytest.mark.parametrize("published", [True, False])
def test_starting_from_a_checkpoint_with_other_classes(tiny: Tiny, tmp_path: Path, published: bool) -> None:
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2}
    theirs = create_model("vim_nano", num_classes=5, **options).state_dict()
    file = tmp_path / "theirs.pth"
    torch.save({"model": vim.to_published(theirs) if published else theirs}, file)
    seen: list[Event] = []
    config = tiny(**{"model.checkpoint": str(file), "schedule.epochs": 1, "optim.lr": 1e-12})
    train(config, on_event=seen.append)
    (notice,) = [event.message for event in seen if isinstance(event, Notice)]
    assert notice.endswith("its head with 5 outputs does not fit here; a new one starts from random weights.")
    for name, tensor in final(config).items():
        if not name.startswith("head."):
            torch.testing.assert_close(tensor, theirs[name], msg=name)


def test_a_model_of_another_task_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="dig_nano is a model of the task generation, and this is classification"):
        train(tiny(**{"model.name": "dig_nano"}))


def test_a_checkpoint_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "theirs.pth"
    torch.save(
        create_model("vim_nano", num_classes=3, img_size=8, patch_size=4, embed_dim=24, depth=2).state_dict(), file
    )
    with pytest.raises(CheckpointError, match=r"theirs\.pth: these weights do not fit Vim: .*wrong shape: .*24"):
        train(tiny(**{"model.checkpoint": str(file)}))


def test_estimate_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(**{"optim.accumulate": 2, "ema.decay": 0.9})
    found = estimate(config)
    assert (found.updates_per_epoch, found.updates, found.images_per_update) == (3, 6, 16)
    assert (found.train_images, found.val_images, found.knows) == (40, 11, "3 classes (grey0, grey1, grey2)")
    assert found.seconds > 6 * 16 / found.images_per_second
    cut = estimate(config.replace(**{"schedule.updates": 4, "schedule.cooldown_epochs": 1}))
    assert (cut.epochs, cut.updates_per_epoch, cut.updates) == (3, 3, 7)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(tiny: Tiny) -> None:
    whole, config = tiny(**{"run.name": "whole"}), tiny()
    for each in (whole, config):
        train(each)
    last = config.run_folder / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    (config.run_folder / ".writable.123").touch()  # as an older version left it when it was killed
    events: list[Event] = []
    train(resumed(config), on_event=events.append)
    told = [event.message for event in events if isinstance(event, Notice)]
    (damaged,) = (number for number, text in enumerate(told) if "last.ckpt: damaged" in text)
    assert told[damaged + 1].endswith("previous.ckpt.")
    assert same(final(whole), final(config))
    assert not (config.run_folder / ".writable.123").exists()


def test_a_pipe_in_a_run_folder(tiny: Tiny) -> None:
    config = tiny(**{"schedule.epochs": 1})
    train(config)
    (config.run_folder / "log.jsonl").unlink()
    os.mkfifo(config.run_folder / "log.jsonl")
    with pytest.raises(ConfigError, match=r"cannot resume: .*log\.jsonl is a named pipe"):
        train(resumed(config))


def test_weights_do_not_say_where_others_came_from(tiny: Tiny) -> None:
    options = {"patch_size": 4, "embed_dim": 16, "depth": 2, "pretrained_cfg_overlay": {"mean": [0.4, 0.4, 0.4]}}
    config = tiny(**{"schedule.epochs": 1, "model.options": options})
    train(config)
    info = load_weights(config.run_folder / "best.safetensors").info
    assert set(info.model_options) == {"patch_size", "embed_dim", "depth", "img_size"}
    assert info.preprocessing.mean == (0.4, 0.4, 0.4)


def test_a_damaged_log_costs_only_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    parts = SimpleNamespace(
        val=SimpleNamespace(dataset=None, batch_size=1),
        task=SimpleNamespace(pictures=lambda meter, samples, folder, title: drawn.append(folder), pictured={}),
    )
    config = SimpleNamespace(
        run=SimpleNamespace(amp="none"), data=SimpleNamespace(workers=0), model=SimpleNamespace(name="vim_nano")
    )
    engine = SimpleNamespace(parts=parts, config=config, processes=SimpleNamespace(device="cpu"), progress=Progress())
    folder = SimpleNamespace(path=tmp_path, log=tmp_path / "log.jsonl", best_weights=None, last_weights=None)
    folder.log.write_text("[1]\n[1]\n")
    monkeypatch.setattr(results, "evaluate", lambda *_, **__: SimpleNamespace(meter=None))
    assert "log.jsonl' is damaged in line 1" in write_pictures(folder, engine)
    assert drawn == [tmp_path]


def test_a_batch_norm_over_one_value_says_what_to_do(tiny: Tiny) -> None:
    config = tiny(
        **{"model.name": "efficientvmamba_nano", "model.options": {}, "model.img_size": 16, "data.batch_size": 1}
    )
    with pytest.raises(ConfigError, match=r"would see one value per channel.*use a larger batch size"):
        train(config)
