"""Scores in shards are those of one process, and what is done stays done."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.jobs.archives import crew_in
from vision_ssm.cli.main import main
from vision_ssm.errors import ConfigError, DataError
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.inference.jobs import job as jobs
from vision_ssm.inference.jobs.evaluation import ScoreWork, _collected, _whole, evaluate_in_shards
from vision_ssm.inference.jobs.plan import Piece
from vision_ssm.tasks.detection.coco_scores import Seen
from vision_ssm.tasks.detection.meter import DetectionMeter
from vision_ssm.tasks.generation.meter import GenerationMeter, Made
from vision_ssm.tasks.segmentation.meter import SegmentationMeter
from vision_ssm.weights import opening


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The same sums here and in the workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_scores_are_those_of_one_process(weights, colour_folder, tmp_path):
    data, out = colour_folder(), tmp_path / "shards"
    Image.new("RGB", (12, 10), (0, 255, 0)).save(data / "red" / "0.png")  # so that there is a mistake
    alone = evaluate(weights, data, batch_size=2)
    seen = []
    arguments = {"shard_rows": 4, "batch_size": 2, "on_progress": lambda *done: seen.append(done)}
    found = evaluate_in_shards(weights, data, out, workers=2, **arguments)
    assert found.to_dict() == {**alone.to_dict(), "loss": pytest.approx(alone.scores["loss"], rel=1e-6)}
    assert found.scores["top1"] < 1
    assert found.meter.guesses == alone.meter.guesses
    assert (seen[0], seen[-1]) == ((0, 12), (12, 12))
    first, *others = sorted(out.glob("part-*"))
    kept = first.stat().st_mtime_ns
    others[0].unlink()
    again = evaluate_in_shards(weights, data, out, workers=1, **arguments)
    assert again.to_dict() == found.to_dict()
    assert first.stat().st_mtime_ns == kept
    with pytest.raises(DataError, match="of another job: amp was None and is 'bf16'"):
        evaluate_in_shards(weights, data, out, amp="bf16", **arguments)
    first.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"part-00000-of-00003.scores' cannot be used .*remove it"):
        evaluate_in_shards(weights, data, out, **arguments)


@pytest.mark.parametrize("task", ["segmentation", "detection", "generation"])
def test_what_meters_collect_comes_back(tmp_path, task):
    boxes, labels = np.array([[1.0, 2, 3, 4]]), np.array([1])
    outline = np.array([[1.0, 2], [3, 2], [3, 4]])
    scores = boxes.astype(np.float32), labels, np.array([0.5], np.float32), ["04"]
    seen = Seen((8, 9), boxes, labels, np.array([False]), np.array([4.0]), [outline], *scores)
    kind, state = {
        "segmentation": (SegmentationMeter, (1, torch.eye(2, dtype=torch.int64), 2, {4: np.ones((2, 3), np.uint8)})),
        "detection": (DetectionMeter, {3: seen}),
        "generation": (GenerationMeter, (2, 0.5, [torch.ones(2, 3)], [torch.ones(1, 3)], [Made(1, 2, 0)])),
    }[task]
    path = tmp_path / "part.scores"
    torch.save(state, path)
    found = _collected(path, kind(["a", "b"]))
    assert type(found) is type(state)
    assert plain(found) == plain(state)


def plain(value):
    if isinstance(value, np.ndarray | torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, Seen):
        return plain(vars(value))
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def test_a_pickle_that_does_things_is_refused(weights, colour_folder, tmp_path):
    data, out = colour_folder(), tmp_path / "shards"
    evaluate_in_shards(weights, data, out, workers=1)
    (shard,) = out.glob("part-*")
    torch.save((main, Made(1, 2, 3)), shard)  # a function of ours, which is no record, beside one that is
    with pytest.raises(DataError, match=r"needs more than tensors and plain values: vision_ssm\.cli\.main\.main\."):
        evaluate_in_shards(weights, data, out, workers=1)


def test_wrong_use(weights, colour_folder, tmp_path):
    data = colour_folder()

    def refused(kind, text, **options):
        with pytest.raises(kind, match=text):
            evaluate_in_shards(weights, data, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused(ConfigError, "address 'auto' is that of a Ray cluster", address="auto")
    refused(ConfigError, "a shard has at least one row", shard_rows=0)
    refused(ConfigError, "top_q", top_q=3)
    refused(DataError, "nightly", split="nightly")


def test_workers_of_a_cluster_have_their_own_folder(weights, colour_folder, tmp_path, monkeypatch):
    colour_folder()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "RayCrew", crew_in(tmp_path / "away"))
    for number, data in enumerate(("val", "./away/../val")):
        found = evaluate_in_shards(weights.name, data, f"out{number}", engine="ray", device="cuda", shard_rows=4)
        known = evaluate(weights.name, data)
        assert found.scores == pytest.approx(known.scores)
        assert {**found.to_dict(), **known.scores} == known.to_dict()


def test_named_data_stay_a_name(monkeypatch, tmp_path):
    """A folder of the same name is another thing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    scoring = SimpleNamespace(samples=SimpleNamespace(paths=("digits/00000",)))
    assert _whole("digits", scoring) == "digits"
    assert _whole("memory://packed", scoring) == "memory://packed"


def test_workers_with_other_data_are_refused(weights, colour_folder):
    bench = ScoreWork(str(weights), None, str(colour_folder()), None).open("cpu")
    known = bench.references()
    with pytest.raises(
        DataError, match=r"not the same for all workers: image 1 is to be 'other.png', and there are 12"
    ):
        bench.content(Piece(0, (known[0], known[1]._replace(name="other.png"))))


def test_an_image_that_cannot_be_read_ends_it(weights, colour_folder, tmp_path):
    data = colour_folder()
    (data / "red" / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"red/2\.png"):
        evaluate_in_shards(weights, data, tmp_path / "shards", workers=1, shard_rows=4)
    assert len(list((tmp_path / "shards").glob("part-*"))) == 2


def test_by_the_command(weights, colour_folder, tmp_path, capsys, monkeypatch):
    data = colour_folder()
    command = ["evaluate", str(weights), str(data), "--json"]
    assert main(command) == 0
    alone = json.loads(capsys.readouterr().out)
    opened = []
    load = opening.load_weights
    monkeypatch.setattr(opening, "load_weights", lambda *given: opened.append(given) or load(*given))
    assert main([*command, "--shards", str(tmp_path / "shards"), "--workers", "1", "--shard-rows", "5"]) == 0
    assert len(opened) == 1
    found = json.loads(capsys.readouterr().out)
    assert found.pop("loss") == pytest.approx(alone.pop("loss"), rel=1e-5)
    assert {name: found[name] for name in ("top1", "count", "split", "confusion")} == {
        name: alone[name] for name in ("top1", "count", "split", "confusion")
    }
    assert main([*command, "--engine", "ray"]) == 2
    assert "--engine belongs to --shards DIR" in capsys.readouterr().err
