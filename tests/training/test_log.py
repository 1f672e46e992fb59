"""The table of a run's log."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vision_ssm.errors import DataError
from vision_ssm.training import results, run, train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import Event, Notice, StepDone
from vision_ssm.training.log import write_table

SCORES = [{"name": "miou", "title": "mean IoU"}, {"name": "loss", "title": "loss", "higher_is_better": False}]


def step(update: int, loss: float | None) -> dict[str, Any]:
    losses = {"decode": loss, "auxiliary": 0.5}
    event = {"event": "step_done", "epoch": 1, "step": update, "update": update, "loss": loss, "losses": losses}
    return {**event, "learning_rate": 0.1, "grad_norm": 2.0, "images_per_second": 9.0}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_row_per_step_and_epoch(tmp_path: Path) -> None:
    log, table = tmp_path / "log.jsonl", tmp_path / "log.csv"
    epoch = {"event": "epoch_done", "epoch": 1, "update": 2, "train_loss": 1.5, "scores": {"miou": 0.25, "loss": None}}
    events = [{"event": "run_started", "scores": SCORES}, step(1, 9.0), step(1, 2.0), step(2, None), epoch]
    log.write_text("\n".join([*map(json.dumps, events), '{"event": "step_do']))  # twice step 1: it was resumed
    write_table(log, table)
    first, second, last = rows(table)
    assert list(first) == [
        *("event", "epoch", "update", "loss", "learning_rate", "grad_norm", "images_per_second"),
        *("train_loss", "seconds", "is_best", "loss:decode", "loss:auxiliary"),
        *("score:miou", "score:loss", "ema:miou", "ema:loss"),
    ]
    assert (first["event"], first["loss"], first["loss:decode"], first["score:miou"]) == ("step_done", "2.0", "2.0", "")
    assert (second["update"], second["loss"], second["loss:auxiliary"]) == ("2", "", "0.5")
    told = ("event", "train_loss", "score:miou", "score:loss", "ema:miou")
    assert [last[name] for name in told] == ["epoch_done", "1.5", "0.25", "", ""]
    log.write_text("nonsense\n" + json.dumps(events[0]))
    before = table.read_bytes()
    with pytest.raises(DataError, match="damaged in line 1"):
        write_table(log, table)
    assert table.read_bytes() == before


def content(folder: Path) -> list[dict[str, str]]:
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows(folder / "log.csv")]


def test_curve_and_table_while_training_runs(tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(results, "write_pictures", lambda folder, engine: results.write_progress(folder))
    monkeypatch.setattr(results, "draw_curve", lambda log, path: path.write_bytes(log.read_bytes()))
    whole, broken = (tiny(**{"schedule.epochs": 3, "run.name": name}) for name in ("whole", "broken"))
    train(whole)
    seen: list[tuple[str, str]] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 1 and event.epoch > 1:
            last = rows(broken.run_folder / "log.csv")[-1]
            seen.append((last["event"], last["epoch"]))
            assert (broken.run_folder / "curve.png").exists()
        if isinstance(event, StepDone) and event.update == 7:
            signal.raise_signal(signal.SIGTERM)

    assert train(broken, on_event=listen).interrupted
    assert rows(broken.run_folder / "log.csv")[-1]["update"] == "8", "the update after the signal"
    train(broken.replace(**{"run.resume": str(broken.run_folder)}), on_event=listen)
    assert seen == [("epoch_done", "1"), ("epoch_done", "2")]
    assert content(broken.run_folder) == content(whole.run_folder)


def test_a_curve_that_cannot_be_drawn_does_not_end_the_run(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(log: Path, path: Path) -> None:
        raise DataError("no space left.")

    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(results, "draw_curve", refuse)
    seen: list[Event] = []
    assert train(tiny(), on_event=seen.append).updates == 10
    told = [event.message for event in seen if isinstance(event, Notice)]
    assert told == ["The curve could not be drawn: no space left."]
