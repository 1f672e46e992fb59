"""What the programs of `run.log_to` are told: TensorBoard for real, the others through modules that note the calls."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vision_ssm.errors import ConfigError
from vision_ssm.training import sinks, train
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import Event, Notice, StepDone

Tiny = Callable[..., TrainConfig]


def stop_at(update: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.update == update:
            signal.raise_signal(signal.SIGTERM)

    return listen


def again(config: TrainConfig) -> TrainConfig:
    return config.replace(**{"run.resume": str(config.run_folder)})


def logged(config: TrainConfig, kind: str, value: str) -> list[tuple[int, Any]]:
    lines = (config.run_folder / "log.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["event"] == kind]
    return [(event["update"], event["scores"][value] if kind == "epoch_done" else event[value]) for event in events]


def test_tensorboard_shows_a_run_and_its_continuation_as_one(tiny: Tiny) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny(**{"run.log_to": "tensorboard", "run.checkpoint_minutes": 1e6})
    train(config, on_event=stop_at(7))
    train(again(config))
    found = events.EventAccumulator(str(config.run_folder / "tensorboard"), {"scalars": 0})
    found.Reload()
    for tag, kind, value in (
        ("train/loss", "step_done", "loss"),
        ("train/learning_rate", "step_done", "learning_rate"),
        ("held_out/top1", "epoch_done", "top1"),
    ):
        shown = [(point.step, point.value) for point in found.Scalars(tag)]
        assert shown == [(at, pytest.approx(number)) for at, number in logged(config, kind, value)], tag
    assert "_hparams_/session_start_info" in found.summary_metadata
    assert "optim.lr" in str(found.summary_metadata["_hparams_/session_start_info"].plugin_data.content)


def test_a_replaced_run_leaves_no_events(tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    config = tiny(**{"run.log_to": ["tensorboard"], "schedule.epochs": 1})
    train(config)
    train(config.replace(**{"run.overwrite": True}))
    assert len(list((config.run_folder / "tensorboard").iterdir())) == 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    calls: list[tuple[str, Any]] = []

    def init(**options: Any) -> SimpleNamespace:
        calls.append(("init", options))
        return SimpleNamespace(
            id="abc",
            log=lambda values, step: calls.append(("log", (values, step))),
            finish=lambda exit_code: calls.append(("finish", exit_code)),
        )

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]  # what find_spec looks at
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_is_told_one_run(tiny: Tiny, wandb: list[tuple[str, Any]]) -> None:
    config = tiny(**{"run.log_to": "wandb"})
    train(config, on_event=stop_at(6))
    begun, ended = wandb[0], wandb[-1]
    assert begun[1]["config"]["optim.lr"] == 2e-3
    assert (begun[1]["project"], begun[1]["name"], begun[1]["id"]) == ("vision-ssm", "run", None)
    assert ended == ("finish", 1), "it was interrupted"
    steps = [values for kind, values in wandb if kind == "log"]
    assert [step for _, step in steps] == [1, 2, 3, 4, 5, 5, 6, 7]
    names = ("loss", "learning_rate", "grad_norm", "images_per_second")
    assert set(steps[4][0]) == {*(f"train/{name}" for name in names), "train/epoch"}
    assert {"held_out/top1", "held_out/loss", "epoch/train_loss", "train/epoch"} <= set(steps[5][0])
    del wandb[:]
    train(again(config))
    assert (wandb[0][1]["id"], wandb[0][1]["resume"]) == ("abc", "allow")
    assert wandb[-1] == ("finish", 0)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            calls.append(("experiment", name))

        def create_experiment(self, name: str) -> str:
            return f"the experiment {name}"

        def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
            calls.append(("run", experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def update_run(self, run: str, status: str) -> None:
            calls.append(("again", run, status))

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            calls.append(("params", params) if params else ("metrics", metrics))

        def set_terminated(self, run: str, status: str) -> None:
            calls.append(("end", run, status))

    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    entities.Param = entities.Metric = lambda *values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return calls


def test_mlflow_is_told_one_run(tiny: Tiny, mlflow: list[tuple[Any, ...]]) -> None:
    config = tiny(**{"run.log_to": "mlflow"})
    train(config, on_event=stop_at(6))
    assert mlflow[:2] == [("experiment", "vision-ssm"), ("run", "the experiment vision-ssm", "run")]
    params = [call[1] for call in mlflow if call[0] == "params"]
    assert max(map(len, params)) <= 100
    assert ("optim.lr", "0.002") in [pair for some in params for pair in some]
    points = [call[1] for call in mlflow if call[0] == "metrics"]
    assert [some[0][3] for some in points] == [1, 2, 3, 4, 5, 5, 6, 7]
    losses = [(some[0][3], some[0][1]) for some in points if some[0][0] == "train/loss"]
    assert losses == logged(config, "step_done", "loss")
    assert mlflow[-1] == ("end", "r1", "KILLED")
    del mlflow[:]
    train(again(config))
    assert mlflow[0] == ("again", "r1", "RUNNING")
    assert "params" not in [call[0] for call in mlflow]
    assert mlflow[-1] == ("end", "r1", "FINISHED")


def test_a_sink_that_fails_is_told_and_does_not_end_the_run(tiny: Tiny, mlflow: list[Any]) -> None:
    client = sys.modules["mlflow"].MlflowClient
    before = client.log_batch

    def refuse(self: Any, run: str, metrics: Any = (), params: Any = ()) -> None:
        if metrics and metrics[0][3] == 3:
            raise OSError("no such server")
        before(self, run, metrics, params)

    client.log_batch = refuse
    seen: list[Event] = []
    assert train(tiny(**{"run.log_to": "mlflow"}), on_event=seen.append).updates == 10
    told = [event.message for event in seen if isinstance(event, Notice)]
    assert told == ["mlflow is told nothing more, as it failed: no such server"]


def test_what_is_not_there_is_said_before_training(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    config = tiny(**{"run.log_to": "wandb"})
    with pytest.raises(ConfigError, match=r"run\.log_to names wandb, which is not installed: pip install wandb"):
        train(config)
    assert not config.run_folder.exists()
    with pytest.raises(ConfigError, match=r"run\.log_to must be .* got 'wanbd'.* Did you mean 'wandb'\?"):
        tiny(**{"run.log_to": "wanbd"})


def test_a_sink_that_cannot_be_opened_ends_the_run_before_training(tiny: Tiny, wandb: list[Any]) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("no api key")

    sys.modules["wandb"].init = refuse
    seen: list[Event] = []
    with pytest.raises(ConfigError, match="wandb cannot be opened: no api key"):
        train(tiny(**{"run.log_to": "wandb"}), on_event=seen.append)
    assert not seen
