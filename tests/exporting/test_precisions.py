"""Files in float16 and INT8: smaller, run by the same commands, and held to the score of the data."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from PIL import Image

import vision_ssm
from vision_ssm.cli.main import main
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.exporting import export, onnx_files, quantising
from vision_ssm.exporting.lowering import Written
from vision_ssm.tasks.scores import Score
from vision_ssm.weights.exported import read_exported
from vision_ssm.weights.files import save_weights

PRODUCTS = ["patch_embed.proj", "blocks.0.mixer.in_proj", "blocks.0.mixer.out_proj", "head"]


@pytest.fixture
def written_once(exported, graph, monkeypatch):
    """Exports take the graph of the one that was made for the session, and lower its precision."""

    def write(path, *_, lower=None, **__):
        path.write_bytes(graph.read_bytes())
        lowered = lower(path)
        onnx_files._bare(path)
        return Written(onnx_files.PACKAGES, lowered)

    monkeypatch.setattr(onnx_files, "write", write)


def operators(path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    return Counter(node.op_type for node in model.graph.node), model


@pytest.mark.usefixtures("written_once")
def test_int8_keeps_the_score_and_the_scan(loaded, colour_folder, tmp_path, capsys):
    weights, file, data = tmp_path / "best.safetensors", tmp_path / "best.onnx", colour_folder()
    save_weights(weights, loaded.model, info=loaded.info)
    assert main(["export", str(weights), "--precision", "int8", "--calibrate", str(data), "--dynamic", "batch"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "top1 of 12 images: 100.00 % in float32, 100.00 % in INT8 (4 of 4 products, ranges from 12 images)" in told
    record = read_exported(file).record
    assert (record.precision, record.check["tolerance"]) == ("int8", 0.5)
    assert [layer["name"] for layer in record.quantised["layers"]] == PRODUCTS
    counted, _ = operators(file)
    assert counted["QuantizeLinear"] >= len(PRODUCTS)
    assert counted["Scan"] == 1
    assert vision_ssm.evaluate(file, data).scores["top1"] == 1


@pytest.mark.usefixtures("written_once")
def test_layers_that_cost_most_stay_in_float(loaded, colour_folder, tmp_path, monkeypatch):
    scores = itertools.chain([1.0, 0.5, 0.9, 0.995])  # in float, and with 0, 1 and 2 products in float
    monkeypatch.setattr(quantising, "score_of", lambda *_: (next(scores), 12))
    heard: dict[str, list[tuple[int, int]]] = {}
    found = export(
        loaded,
        tmp_path / "m.onnx",
        precision="int8",
        calibrate=colour_folder(),
        dynamic=["batch"],
        on_stage=lambda stage, *counts: heard.setdefault(stage, []).append(counts),
    )
    said = found.record.quantised
    assert (said["before"], said["after"]) == (1.0, 0.995)
    assert list(heard) == ["looking at images", "taking ranges of values", "quantising each product alone"]
    assert heard["taking ranges of values"] == [(done, said["calibrated"]) for done in range(said["calibrated"] + 1)]
    assert [done for done, of in heard["quantising each product alone"] if of == 4] == [0, 1, 2, 3]
    errors = [layer["error"] for layer in said["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert [layer["kept"] for layer in said["layers"]] == [True, True, False, False]
    counted, model = operators(found.path)
    wide = {tensor.name for tensor in model.graph.initializer if tensor.data_type == 1 and len(tensor.dims) in (2, 4)}
    floating = [node for node in model.graph.node if node.op_type in quantising.KINDS and node.input[1] in wide]
    assert len(floating) == 2
    assert counted["Scan"] == 1


@pytest.mark.usefixtures("written_once")
def test_a_model_that_does_not_bear_it_leaves_no_file(loaded, colour_folder, tmp_path, monkeypatch):
    scores = itertools.chain([1.0], itertools.repeat(0.9))
    monkeypatch.setattr(quantising, "score_of", lambda *_: (next(scores), 12))
    data, place = colour_folder(), tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"top-1 falls from 100.00 % to 90.00 %, with 2 of 4 products in float"):
        export(loaded, place / "m.onnx", precision="int8", calibrate=data, dynamic=["batch"])
    assert list(place.iterdir()) == []


def test_data_that_cannot_judge_a_model_are_refused_before_it_is_converted(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "write", lambda *_, **__: pytest.fail("it was converted"))
    for name in ("gulls", "terns"):
        folder = tmp_path / "birds" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "1.png")
    for data, message in ((tmp_path / "nowhere", "nowhere"), (tmp_path / "birds", "unknown to the weights: 'gulls'")):
        with pytest.raises(DataError, match=message):
            export(loaded, tmp_path / "m.onnx", precision="int8", calibrate=data)


@pytest.mark.usefixtures("written_once")
def test_openvino_is_scored_by_itself(loaded, colour_folder, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    data = colour_folder()
    found = export(loaded, tmp_path / "m.xml", format="openvino", precision="int8", calibrate=data, dynamic=["batch"])
    assert found.record.quantised["after"] == 1
    assert found.path.read_text().count('type="FakeQuantize"') >= len(PRODUCTS)
    outcome = quantising.Quantised("top1", 1.0, 1.0, 12, 12, ())
    monkeypatch.setattr(quantising, "score_of", lambda *_: (0.9, 12))
    with pytest.raises(CheckpointError, match=r"falls from 100.00 % to 90.00 % in this runtime"):
        quantising.scored_again(outcome, read_exported(found.path), loaded, data, print)


@pytest.mark.usefixtures("written_once")
def test_float16_takes_half_the_room(exported, loaded, tmp_path):
    found = export(loaded, tmp_path / "half.onnx", precision="float16", dynamic=["batch"])
    assert 1e-6 < found.check.error < 1e-2
    counted, model = operators(found.path)
    half = [tensor for tensor in model.graph.initializer if tensor.data_type == 10]
    assert counted["Cast"] >= len(half) >= 3
    assert {len(tensor.dims) for tensor in half} >= {2, 4}
    assert found.path.stat().st_size < exported.path.stat().st_size
    assert found.record.precision == "float16"


@pytest.mark.parametrize(("side", "count"), [(32, 128), (224, 128), (512, 24), (2000, 1), (9000, 1)])
def test_of_larger_images_fewer_set_the_ranges(side, count):
    assert quantising.as_many(quantising.IMAGES, torch.empty(1, 3, side, side, device="meta")) == count


def test_only_shares_decide(loaded, monkeypatch):
    distance = Score("fid", "Fréchet distance", higher_is_better=False)
    monkeypatch.setattr(type(loaded.task()), "primary", distance)
    with pytest.raises(ConfigError, match="judged by a share that is to be high, and Fréchet distance decides"):
        quantising.quantise(None, None, loaded, "images", print)
