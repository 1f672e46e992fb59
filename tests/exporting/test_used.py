"""Exported files in the place of weights: the same results, by their runtime, without the model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import vision_ssm
from vision_ssm.bench.settings import Case
from vision_ssm.bench.subject import prepare, require_subject
from vision_ssm.cli.main import main
from vision_ssm.errors import CheckpointError, ConfigError, ShapeError
from vision_ssm.exporting import onnx_files
from vision_ssm.exporting.lowering import Written
from vision_ssm.weights.exported import ExportRecord
from vision_ssm.weights.files import save_weights
from vision_ssm.weights.runtimes import MICROSOFT, OnnxRuntime


@pytest.fixture(autouse=True)
def no_model_is_built(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.setattr("timm.create_model", refuse)


def test_prediction_gives_what_the_weights_give(exported, loaded, colour_folder):
    images = colour_folder()
    ours, theirs = (vision_ssm.predict(weights, images, batch_size=5) for weights in (loaded, exported.path))
    assert theirs.weights == str(exported.path)
    for mine, other in zip(ours.results, theirs.results, strict=True):
        assert (mine.path, [name for name, _ in mine.classes]) == (other.path, [name for name, _ in other.classes])
        np.testing.assert_allclose([p for _, p in mine.classes], [p for _, p in other.classes], atol=1e-5)


def test_evaluation_gives_the_same_scores(exported, loaded, colour_folder):
    folder = colour_folder()
    ours, theirs = (vision_ssm.evaluate(weights, folder).scores for weights in (loaded, exported.path))
    assert theirs["top1"] == 1
    assert theirs == pytest.approx(ours, abs=1e-5)


def test_features_are_the_vectors_of_the_weights(exported, loaded, colour_folder):
    images = colour_folder("red", count=2)
    ours, theirs = (vision_ssm.features(weights, images).results for weights in (loaded, exported.path))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.embedding, other.embedding, atol=1e-5)
    with pytest.raises(ConfigError, match="ExportedClassifier gives no maps of its layers; leave layers out"):
        vision_ssm.features(exported.path, images, layers=[-1])


def test_what_a_file_cannot_do_is_said(exported, colour_folder):
    images = colour_folder("red", count=1)
    with pytest.raises(ShapeError, match=r"exported for images of 8x8, got 12x12; resize them .* --dynamic size"):
        vision_ssm.predict(exported.path, images, img_size=12)
    with pytest.raises(ConfigError, match=r"leave mixed precision \(amp\) out"):
        vision_ssm.predict(exported.path, images, amp="bf16")
    with pytest.raises(ConfigError, match="an exported model, which says itself what it is; leave model out"):
        vision_ssm.load_model(exported.path, model="vim_nano")
    with pytest.raises(ConfigError, match="exported models run on the CPU here, got device 'meta'"):
        vision_ssm.load_model(exported.path, device="meta")


def test_an_opened_file_stays_on_the_cpu(exported):
    opened = vision_ssm.load_model(exported.path)
    assert vision_ssm.load_model(opened) is opened
    with pytest.raises(ConfigError, match="exported models run on the CPU here, got device 'meta'"):
        vision_ssm.load_model(opened, device="meta")


def test_files_that_are_none_are_said_to_be(tmp_path, exported):
    with pytest.raises(CheckpointError, match=r"cannot open exported file .*missing.onnx': No such file"):
        vision_ssm.load_model(tmp_path / "missing.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"onnxruntime cannot open .*broken.onnx"):
        vision_ssm.load_model(broken)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported.path))
    del model.metadata_props[:]
    onnx.save(model, str(broken))
    with pytest.raises(CheckpointError, match=r"does not say what it is \(no 'vision_ssm' in its metadata\)"):
        vision_ssm.load_model(broken)


def asks_for_an_operator(model):
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "NoSuchAttention", MICROSOFT
    model.opset_import.add(domain=MICROSOFT, version=1)


def asks_for_an_opset(model):
    model.opset_import[0].version = 999


def asks_for_a_format(model):
    model.ir_version = 999


def asks_for_a_later_operator(model):
    model.graph.node[-1].op_type = "NoSuchNorm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            asks_for_an_operator,
            "has no operator NoSuchAttention of com.microsoft; export the model again with --target",
        ),
        (asks_for_an_opset, r"knows opsets of ai.onnx up to \d+, and the file has 999; install a newer onnxruntime"),
        (
            asks_for_a_format,
            r"reads versions of the format up to \d+, and the file has 999; install a newer onnxruntime",
        ),
        (asks_for_a_later_operator, "has no operator NoSuchNorm; install a newer onnxruntime"),
    ],
)
def test_what_a_runtime_lacks_is_said_with_what_to_do(exported, change, message, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported.path))
    change(model)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(CheckpointError, match=rf"onnxruntime cannot open .*m.onnx': version \S+ {message}") as told:
        vision_ssm.load_model(tmp_path / "m.onnx")
    assert "\n" not in str(told.value)


def test_a_record_is_read_as_it_was_written():
    record = ExportRecord("onnx", "portable", ("logits",), (8, 12), ("size",), 4, versions={"torch": "2"})
    assert ExportRecord.from_json(record.to_json()) == record
    record.check_size(8, 20)
    for size in ((6, 8), (4, 8)):
        with pytest.raises(ShapeError, match="sides are multiples of 4, from 8 on, got"):
            record.check_size(*size)
    with pytest.raises(CheckpointError, match="layout 9; this version reads 1"):
        ExportRecord.from_json(json.dumps({"layout": 9}))
    with pytest.raises(CheckpointError, match="damaged"):
        ExportRecord.from_json('{"layout": 1}')


def test_a_file_for_single_images_takes_batches_one_by_one(exported, monkeypatch):
    runs = []
    run = OnnxRuntime.__call__
    monkeypatch.setattr(OnnxRuntime, "__call__", lambda self, x: (runs.append(len(x)), run(self, x))[1])
    model, info = vision_ssm.load_model(exported.path)
    images = torch.randn(3, 3, 8, 8)
    together = model(images)
    object.__setattr__(model.run.record, "dynamic", ())
    torch.testing.assert_close(model(images), together)
    assert runs == [3, 1, 1, 1]
    assert info.class_names == ("blue", "green", "red")


def test_the_commands(exported, loaded, colour_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # exporting builds the model that it compares with
    weights, images = tmp_path / "best.safetensors", colour_folder()
    save_weights(weights, loaded.model, info=loaded.info)

    def write(path, *_, **__):
        path.write_bytes(exported.path.read_bytes())
        return Written(onnx_files.PACKAGES)

    monkeypatch.setattr(onnx_files, "write", write)
    assert main(["export", str(weights), "--dynamic", "batch"]) == 0
    told = capsys.readouterr().out
    assert "best.onnx" in told
    assert "100.00 % of the answers agree" in told
    file = tmp_path / "best.onnx"
    assert main(["predict", str(file), str(images / "red"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["classes"][0]["class"] == "red"
    assert main(["evaluate", str(file), str(images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == 1
    assert main(["features", str(images / "red"), str(file), "--output", str(tmp_path / "vectors")]) == 0
    assert "4 images, 16 numbers each" in capsys.readouterr().out
    assert main(["export", str(weights), "--dynamic", "batch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"]["agreement"] == 1
    assert main(["export", str(weights), "--dynamic", "length"]) == 2
    assert main(["export", str(weights), "--tolerance", "0"]) == 2
    assert "tolerance must lie between 0 and 1, got 0.0" in capsys.readouterr().err
    assert main(["export", str(weights), "--dynamic", "batch", "--tolerance", "1e-12"]) == 2
    assert "and 1e-12 is allowed" in " ".join(capsys.readouterr().err.split())


def test_bench_runs_a_file_as_it_runs_models(exported):
    case = Case(str(exported.path), 8, 8, 2, "float32", 1, "inference", "cpu")
    require_subject(case.model)
    prepare(case)()
    for change, message in (
        ({"height": 12}, "for images of 8x8"),
        ({"dtype": "bfloat16"}, "in float32 on the cpu only"),
    ):
        with pytest.raises((ConfigError, ShapeError), match=message):
            prepare(dataclasses.replace(case, **change))
