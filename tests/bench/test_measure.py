"""The order of the measuring, its arithmetic on a clock that cannot lie, and what failures leave behind."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from vision_ssm.bench import Settings, measure, run_benchmark
from vision_ssm.errors import ConfigError, VisionSSMNotice

SECONDS = {"test_vit": 0.25, "test_resnet": 0.05, "vim_nano": 0.125, "the matrix product": 0.5}


class Stage:
    """Stands in for models and clock: a call of a model takes its SECONDS, and everything called is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.called: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        monkeypatch.setattr(measure, "prepare", lambda case: self.actor(case.model))
        monkeypatch.setattr(measure, "_product", lambda case: self.actor("the matrix product"))
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)
        self.others = [0.0]
        """Cores that others keep busy: before everything, and in one attempt after the other; the last one stays."""
        monkeypatch.setattr(measure, "LoadWatch", lambda: self)

    def cores_of_others(self) -> float:
        return self.others.pop(0) if len(self.others) > 1 else self.others[0]

    def actor(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self.before(name)
            self.called.append(name)
            self.now += SECONDS[name]

        return act


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


def settings(*models: str, **changes: object) -> Settings:
    values = {"sizes": ((160, 160),), "threads": (1,), "rounds": 3, "memory": False, **changes}
    return Settings(models or ("test_vit", "test_resnet"), **values)


def test_figures_follow_from_the_clock(stage):
    first, second = run_benchmark(settings(batches=(2,))).to_dict()["rows"]
    assert first["seconds"]["median"] == pytest.approx(0.25)
    assert first["images_per_second"] == pytest.approx(8)
    assert second["seconds"] == pytest.approx(
        dict.fromkeys(("median", "lower_quartile", "upper_quartile", "min", "max"), 0.05)
    )
    assert (first["time_ratio"], second["time_ratio"]) == pytest.approx((1, 0.2))
    assert len(second["samples"]) == 3
    assert (first["passes_per_sample"], second["passes_per_sample"]) == (1, 4)  # a sample takes 0.2 s or longer
    ceiling = 2 * 4096**3 / 0.5
    assert first["ceiling_operations_per_second"] == pytest.approx(ceiling)
    assert first["share_of_ceiling"] == pytest.approx(2 * first["macs_all"] / 0.25 / ceiling)


def test_training_counts_three_times_the_operations(stage):
    forward, both = (run_benchmark(settings(mode=mode)).to_dict()["rows"][0] for mode in ("inference", "training"))
    assert both["operations_per_second"] == pytest.approx(3 * forward["operations_per_second"])


def test_a_state_update_is_nine_operations_not_nine_multiply_adds(stage):
    (row,) = run_benchmark(settings("vim_nano", sizes=((32, 32),))).to_dict()["rows"]
    cost = measure.cost("vim_nano", 32)
    expected = 2 * (cost.macs_all - cost.scan_macs) + cost.scan_macs
    assert row["operations_per_second"] == pytest.approx(expected / 0.125)


def test_every_round_goes_through_all_models_and_turns_back(stage):
    run_benchmark(settings("test_vit", "vim_nano"))
    product = "the matrix product"
    vim = ["vim_nano"] * 3  # one untimed, two timed: 0.125 s is less than a sample
    warming = ["test_vit"] * 2 + ["vim_nano"] * 4 + [product] * 2
    there, back = [product, "test_vit", *vim], [product, *vim, "test_vit"]
    assert stage.called == warming + there + back + there


def test_beside_exported_files_a_turn_is_several_passes(stage, monkeypatch):
    monkeypatch.setattr(measure, "require_subject", lambda name: None)
    monkeypatch.setitem(SECONDS, "m.onnx", 1.0)
    run_benchmark(settings("test_vit", "m.onnx", rounds=1))
    product, one_untimed = "the matrix product", 1 + measure.RUNTIME_CALLS
    assert stage.called[-12:] == [name for name in (product, "test_vit", "m.onnx") for _ in range(one_untimed)]


def test_a_drift_of_the_machine_cancels_in_the_ratio(stage, monkeypatch):
    monkeypatch.setitem(SECONDS, "test_resnet", 0.25)

    def slower(_):
        for name, seconds in SECONDS.items():
            monkeypatch.setitem(SECONDS, name, seconds * 1.01)

    stage.before = slower
    _, second = run_benchmark(settings(rounds=4)).to_dict()["rows"]
    assert second["time_ratio"] == pytest.approx(1, abs=0.005)


def test_disturbed_rounds_are_taken_again_and_the_quietest_stay(stage, monkeypatch):
    everywhere = float(os.cpu_count() or 1)
    stage.others = [0.0, everywhere, everywhere / 2 + 0.6, everywhere]
    pace = iter([1.0, 2.0, 4.0])
    rounds = measure._take_rounds

    def slower(*arguments):
        factor = next(pace)
        for name, seconds in {"test_vit": 0.25, "test_resnet": 0.05}.items():
            monkeypatch.setitem(SECONDS, name, factor * seconds)
        rounds(*arguments)

    monkeypatch.setattr(measure, "_take_rounds", slower)
    told = []
    first, second = run_benchmark(
        settings(threads=(os.cpu_count() or 1,)), on_step=lambda *at: told.append(at)
    ).to_dict()["rows"]
    assert (first["attempts"], first["others"]) == (3, everywhere / 2 + 0.6)
    assert (first["seconds"]["median"], second["seconds"]["median"]) == pytest.approx((0.5, 0.1))
    assert "other processes kept" in first["doubts"][0]
    assert told[-1] == (2 + 3 * 3, 2 + 3 * 3)


def test_a_quiet_second_attempt_is_the_last(stage):
    stage.others = [0.0, 99.0, 0.0]
    (row,) = run_benchmark(settings("test_vit")).to_dict()["rows"]
    assert (row["attempts"], row["others"], row["doubts"]) == (2, 0.0, [])


def test_a_share_above_the_ceiling_is_an_error_of_the_measurement(stage, monkeypatch):
    monkeypatch.setitem(SECONDS, "the matrix product", 1e9)
    (row,) = run_benchmark(settings("test_vit")).to_dict()["rows"]
    assert row["share_of_ceiling"] > 1
    assert row["attempts"] == measure.ATTEMPTS
    assert "of the ceiling cannot be: the matrix product that stands for it was disturbed" in row["doubts"][0]


def test_a_busy_machine_is_said_before_anything_runs(stage):
    stage.others = [99.0, 0.0]
    with pytest.warns(VisionSSMNotice, match=r"other processes keep 99\.0 cores at work"):
        run_benchmark(settings("test_vit"))


def test_peak_memory_is_the_middle_of_several_processes(monkeypatch):
    peaks = iter([50, 10, 90, 30, 40])
    found = measure._middle(lambda case: {"peak_bytes": next(peaks)}, settings().groups().__next__()[0])
    assert found == {"peak_bytes": 40, "peak_least": 10, "peak_most": 90, "processes": 5}
    asked = []
    failed = measure._middle(lambda case: asked.append(case) or {"error": "no"}, settings().groups().__next__()[0])
    assert (failed, len(asked)) == ({"error": "no"}, 1)


def test_one_case_that_fails_leaves_the_others_alone(stage):
    def break_down(name):
        if name == "test_vit":
            raise torch.OutOfMemoryError("too large")

    stage.before = break_down
    report = run_benchmark(settings())
    first, second = report.to_dict()["rows"]
    assert first["error"] == "out of memory: too large"
    assert first["seconds"] is None
    assert second["error"] is None
    assert second["seconds"]["median"] == pytest.approx(0.05)
    assert second["time_ratio"] is None
    assert report.complete


def test_a_case_that_fails_late_has_no_figures(stage):
    def break_down(name):
        if name == "test_vit" and stage.called.count(name) == 3:
            raise RuntimeError("worn out")

    stage.before = break_down
    first, second = run_benchmark(settings()).to_dict()["rows"]
    assert (first["error"], first["seconds"]) == ("worn out", None)
    assert len(second["samples"]) == 3


def test_ctrl_c_keeps_what_was_measured(stage):
    def press(name):
        if stage.called.count("test_vit") == 2 + 3 + 2 + 2:  # first size, then warmed up and in the third round
            raise KeyboardInterrupt

    stage.before = press
    threads = torch.get_num_threads()
    told = []
    chosen = settings(sizes=((160, 160), (96, 96), (64, 64)), threads=(threads + 1,))
    report = run_benchmark(chosen, on_group=lambda report, group: told.append(len(group)))
    found = report.to_dict()
    assert (found["interrupted"], found["complete"]) == (True, False)
    assert [(row["height"], len(row["samples"])) for row in found["rows"]] == [(160, 3), (160, 3), (96, 2), (96, 2)]
    assert told == [2]
    assert torch.get_num_threads() == threads


def test_threads_are_set_while_measuring_and_restored(stage):
    seen = []
    stage.before = lambda name: seen.append(torch.get_num_threads())
    before = torch.get_num_threads()
    run_benchmark(settings(threads=(before + 1,)))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_steps_are_told_to_the_end(stage):
    told = []
    run_benchmark(settings(), on_step=lambda done, total: told.append((done, total)))
    assert told == [(done, 5) for done in range(1, 6)]  # two made ready, three rounds


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (settings("vim_nanno"), "there is no model 'vim_nanno'. Did you mean 'vim_nano'"),
        (settings(device="meta"), "only cpu and cuda devices can be timed, got 'meta'"),
        (settings(device="gpu"), "unknown device 'gpu'"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(chosen, message):
    with pytest.raises(ConfigError, match=message):
        run_benchmark(chosen)
